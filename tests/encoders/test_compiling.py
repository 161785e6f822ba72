"""`train.compile`: the same embeddings and gradients, the same names in what is saved."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import train
from models.encoders import compiling
from models.encoders.building import build_encoder
from models.encoders.compiling import check_compiler, compile_encoders
from tests.encoders.test_packing import batch_of
from tests.encoders.tiny_encoders import write_tiny
from tests.helpers import equal, weights
from utils.config.config import EncoderConfig
from utils.data.micro_batches import MicroBatches
from utils.errors import ConfigError
from utils.training.grad_cache import GradCache, backward_all


@pytest.fixture
def traced_alone(monkeypatch):
    """torch.compile without its backend, which takes a minute: what it traces runs as it is."""
    compiled = []

    def compile_module(self, **how):
        compiled.append(type(self).__name__)
        self._compiled_call_impl = torch.compile(self._call_impl, backend="eager", **how)

    torch._dynamo.reset()
    monkeypatch.setattr(nn.Module, "compile", compile_module)
    return compiled


@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler"
)
def test_compiled_embeddings_and_gradients_with_dropout_are_right(tmp_path):
    """By the real compiler, texts of several shapes, gradient caching: a pass without gradient and
    one with it, of which each is compiled, see the same dropout."""
    torch._dynamo.reset()
    config = EncoderConfig(
        name=str(write_tiny("bert", tmp_path / "bert")),
        layers=1,
        dropout=0.3,
        packing=True,
        normalize=False,
    )
    plain = build_encoder(config, None)
    encoder = build_encoder(config, None)
    encoder.load_state_dict(plain.state_dict())
    encoder.train()
    compile_encoders(nn.ModuleDict({"encoder": encoder}))
    parts = [batch_of(lengths, seed=len(lengths)) for lengths in ([3, 4, 9], [5, 2], [6, 6, 2, 8])]
    results = []
    for cached in (True, False):
        encoder.zero_grad()
        torch.manual_seed(1)
        cache = GradCache(encoder, MicroBatches(parts))
        rows = cache.embed() if cached else torch.cat([encoder(part) for part in parts])
        rows.square().sum().backward()
        if cached:
            backward_all([cache])
        found = {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}
        results.append((rows.detach(), found))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert (results[0][0][:3] - plain.eval()(parts[0])).abs().max() > 0.01  # dropout was on
    for name, value in results[1][1].items():
        torch.testing.assert_close(results[0][1][name], value, rtol=1e-4, atol=1e-3, msg=name)
    # one graph for each of the two, whatever the shapes, and no part outside of one
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]
    assert list(encoder.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize(("packing", "checkpointing"), [(True, False), (False, True)])
def test_runs_are_saved_and_resumed_as_ever(
    make_config, tiny_encoder, tmp_path, traced_alone, packing, checkpointing
):
    def fit(name, **more):
        sections = {
            "encoder": {
                "name": tiny_encoder,
                "dropout": 0.2,
                "packing": packing,
                "gradient_checkpointing": checkpointing,
            },
            "method": {"gc_batch_size": 16},
            "run": {"dir": str(tmp_path / name)},
        }
        epochs = {"epochs": 2, "batch_size": 30}
        compiled = {**sections, "train": {**epochs, "compile": True, **more}}
        return train.fit(make_config(**compiled), resume=name == "resumed")

    whole = fit("whole")
    assert traced_alone == ["BertModel"]
    fit("resumed", stop_epoch=1)
    assert equal(weights(whole), weights(fit("resumed")))
    plain = train.fit(
        make_config(
            encoder={"name": tiny_encoder, "dropout": 0.2},
            train={"epochs": 1},
            run={"dir": str(tmp_path / "plain")},
        )
    )
    names = [set(load_file(f / "model" / "model.safetensors")) for f in (whole, plain)]
    assert names[0] == names[1]
    lines = (whole / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line).get("loss") for line in lines]
    assert np.isfinite([loss for loss in losses if loss is not None]).all()


def test_a_machine_without_a_compiler_is_told_so(make_config, tiny_encoder, monkeypatch):
    config = make_config(encoder={"name": tiny_encoder}, train={"compile": True})
    check_compiler(config)
    monkeypatch.setenv("CXX", "no-such-compiler")
    check_compiler(make_config())
    with pytest.raises(ConfigError, match="no C\\+\\+ compiler: 'no-such-compiler' was not found"):
        train.fit(config)
    assert not config.run_folder.exists()
    monkeypatch.setattr(compiling, "gpu_computes", lambda: True)
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="the package triton"):
        check_compiler(config)
