"""GPUs that are too few, too old, too small or not CUDA's, faked: one sentence each, or the CPU."""

import re
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState

import eval as evaluation
import predict
from engine import memory_plan
from engine.trainer import fit
from models.dual.dexml import Dexml
from models.dual.ranker import DualRanker
from tests.commands import run
from utils import cards, distributed
from utils.config.config import to_yaml
from utils.errors import InputError
from utils.plan.parts import GB


@pytest.fixture
def card(monkeypatch):
    """A machine with one old GPU, as far as it is asked about."""
    monkeypatch.delenv(cards.USE_CPU)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla V100")
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation
    )
    properties = SimpleNamespace(total_memory=16 * GB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)


def test_fewer_gpus_than_processes(card, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(InputError, match="4 processes were started on a machine with 1 GPU, "):
        distributed.start()
    monkeypatch.setenv(cards.USE_CPU, "true")
    distributed.check_launcher("no")


def test_processes_that_see_a_card_each(card, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    distributed.check_launcher("no")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # of which all see the same
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="4 processes were started on a machine with 2 GPUs, "):
        distributed.check_launcher("no")


def test_a_card_without_bf16(card):
    """Before a stage is trained, whichever it is."""
    distributed.check_launcher("fp16")
    with pytest.raises(InputError, match="bf16, which Tesla V100 lacks; expected fp16 or no"):
        distributed.check_launcher("bf16")


def test_what_is_asked_for_by_the_launcher_counts_too(card, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(InputError, match="which Tesla V100 lacks"):
        distributed.check_launcher(None)


def test_nccl_that_cannot_start(monkeypatch):
    """Its reason on one line; without several processes nothing is said of it."""

    def broken(**_):
        raise dist.DistBackendError("ncclUnhandledCudaError: Call to CUDA failed.\nLast error: 1\n")

    monkeypatch.setattr(distributed, "Accelerator", broken)
    with pytest.raises(dist.DistBackendError):
        distributed.start()
    monkeypatch.setenv("WORLD_SIZE", "2")
    expected = "the processes cannot reach each other over gloo: ncclUnhandledCudaError: Call to "
    with pytest.raises(InputError, match=f"^{expected}CUDA failed$"):
        distributed.start()
    monkeypatch.setattr(distributed, "gpu_computes", lambda: True)
    monkeypatch.setattr(distributed, "check_launcher", lambda _: None)
    with pytest.raises(InputError, match="over NCCL: .*; NCCL_DEBUG=INFO tells more$"):
        distributed.start()


def test_another_accelerator_is_left_alone(monkeypatch, caplog):
    """Replaying dropout would be wrong there."""
    monkeypatch.delenv(cards.USE_CPU)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    assert distributed.start().device.type == "cpu"
    assert "mps is not used here: everything is computed on the CPU" in caplog.text


def test_accelerate_set_to_another_accelerator_is_refused(monkeypatch):
    distributed.start()
    monkeypatch.setitem(PartialState._shared_state, "device", torch.device("xpu"))
    monkeypatch.setattr(distributed, "Accelerator", lambda **_: PartialState())
    with pytest.raises(InputError, match="set to compute on xpu, expected cuda or cpu"):
        distributed.start()


# -------------------------------- out of memory


def out_of_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.fixture
def small_card(monkeypatch):
    """The plan is that of a GPU; what computes is the CPU."""
    monkeypatch.setattr(memory_plan, "machine", lambda *_: {"memory": 64 * GB, "gpu": 8 * GB})
    monkeypatch.setattr("utils.plan.run_sizes.gpu_computes", lambda: True)


def test_out_of_memory_in_training_is_the_plans_advice(make_config, small_card, monkeypatch):
    monkeypatch.setattr(Dexml, "backward", out_of_memory)
    expected = (
        r"a GPU of 8.00 GB ran out of memory with dexml on tiny, which by --plan takes .* MB of "
        r"it; the largest part is '.*', .* MB; it shrinks with "
    )
    with pytest.raises(InputError, match=expected) as caught:
        fit(make_config())
    assert "\n" not in str(caught.value)


def test_out_of_memory_of_a_method_without_a_plan_names_the_keys(
    make_config, small_card, monkeypatch
):
    monkeypatch.setattr("models.trees.xr_linear.XrLinear.fit", out_of_memory)
    method = {"name": "xr-linear", "max_leaf": 4, "splits": 2}
    with pytest.raises(InputError, match="has no plan of it; it shrinks with train.batch_size"):
        fit(make_config(method=method))


def test_out_of_memory_in_scoring_names_the_keys(make_config, small_card, monkeypatch, capsys):
    folder = fit(make_config(train={"epochs": 0}))
    monkeypatch.setattr(DualRanker, "open", out_of_memory)
    expected = "^error: a GPU of 8.00 GB ran out of memory: it shrinks with eval.batch_size, now"
    with pytest.raises(SystemExit, match=expected):
        evaluation.main([str(folder)])
    with pytest.raises(SystemExit, match=expected):
        predict.main([str(folder), "--text", "vim"])
    with pytest.raises(InputError) as caught:
        evaluation.main([str(folder), "--debug"])
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_a_plan_for_a_card_that_is_not_here(make_config, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(make_config()))
    elsewhere = run("train.py", path, "--plan", "--gpu", "80").stdout
    assert re.search(r"needed on each GPU: .* of 80.00 GB\nIt fits", elsewhere)
    assert "GPU" not in run("train.py", path, "--plan").stdout
    nothing = run("train.py", path, "--plan", "--gpu", "0", check=False)
    assert nothing.returncode == 1
    assert nothing.stderr.splitlines()[-1] == "error: --gpu: expected a number above 0, got 0"


def test_auto_is_the_best_precision_that_the_card_has(card, monkeypatch):
    assert cards.chosen_precision("auto") == "fp16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert cards.chosen_precision("auto") == "bf16"
    assert [cards.chosen_precision(name) for name in ("no", None)] == ["no", None]
    monkeypatch.setenv(cards.USE_CPU, "true")
    assert cards.chosen_precision("auto") == "no"
    assert distributed.precision(distributed.start("auto")) == "no"
