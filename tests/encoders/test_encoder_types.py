"""Transformers of many types: built with fewer layers, saved, read back, padded and exported, or
refused by name."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

import train
from engine.exporter import export
from engine.memory_plan import plan
from models.encoders.building import build_encoder, load_encoder
from models.encoders.portable import embed, write_encoder
from models.loading import load_run
from tests.encoders.tiny_encoders import KINDS, WITHOUT_PADDING, write_tiny
from utils.config.config import EncoderConfig
from utils.errors import InputError
from utils.plan.encoder_sizes import table_shape
from utils.runtime import Runtime

TEXTS = ["the kernel", "a python compiler of linux and the shell : editor tool", "", "font"]
REFUSED = {
    "clip": "a model of type clip holds a model of texts beside others",
    "fnet": "a model of type fnet takes no attention mask",
    "marian": "a model of type marian cannot encode texts",
}
CAUSAL = {
    "bloom",
    "gemma3",
    "gpt2",
    "gpt-neo",
    "llama",
    "mamba",
    "mistral",
    "opt",
    "qwen2",
    "qwen3",
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_transformer_of_any_type_works_or_is_refused_by_name(tiny, tmp_path, kind):
    config = EncoderConfig(name=tiny(kind), layers=2)
    if kind in REFUSED:
        with pytest.raises(InputError, match=REFUSED[kind]):
            build_encoder(config, None)
        return
    encoder = build_encoder(config, None).eval()
    embeddings = embed(encoder, TEXTS, 30)
    alone = torch.cat([embed(encoder, [text], 30) for text in TEXTS])
    # whatever padding its neighbours bring
    torch.testing.assert_close(embeddings, alone, atol=1e-5, rtol=0)
    encoder.save(tmp_path)
    assert torch.equal(embed(load_encoder(config, tmp_path).eval(), TEXTS, 30), embeddings)
    (tmp_path / "out").mkdir()
    write_encoder(encoder, tmp_path / "out", 30)
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(
        TEXTS, show_progress_bar=False
    )
    np.testing.assert_allclose(theirs, embeddings, atol=1e-6)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(REFUSED)))
def test_cls_of_a_causal_model_is_refused(tiny, kind):
    config = EncoderConfig(name=tiny(kind), pooling="cls")
    if kind in CAUSAL:
        with pytest.raises(
            InputError, match=r"is causal: .* it needs mean, or last, which is not supported yet"
        ):
            build_encoder(config, None)
    else:
        found = embed(build_encoder(config, None).eval(), TEXTS, 30)
        assert len(torch.unique(found, dim=0)) == len(TEXTS)


def test_a_bert_made_causal_is_refused_too(tmp_path):
    folder = write_tiny("bert", tmp_path, is_decoder=True)
    with pytest.raises(InputError, match="a model of type bert is causal"):
        build_encoder(EncoderConfig(name=str(folder), pooling="cls"), None)


@pytest.mark.parametrize("kind", ["bart", "gpt2", "mamba", "qwen3", "t5"])
def test_training_with_such_encoders(tiny, make_config, tmp_path, kind):
    """Plan, training, the checkpoint of tied weights, going on from it, and the export."""
    config = make_config(
        encoder={"name": tiny(kind), "layers": 2, "dropout": 0.0},
        data={"max_len": 30},
        train={"epochs": 2, "stop_epoch": 1},
        optim={"lr": 1e-3},
    )
    assert sum(plan(config).parameters.values()) == sum(
        p.numel() for p in build_encoder(config.encoder, None).parameters()
    )
    run = train.fit(config)
    whole = make_config(
        encoder={"name": tiny(kind), "layers": 2, "dropout": 0.0},
        data={"max_len": 30},
        optim={"lr": 1e-3},
        run={"dir": str(tmp_path / "whole"), "threads": 2},
    )
    train.fit(whole)
    train.fit(
        make_config(
            encoder={"name": tiny(kind), "layers": 2, "dropout": 0.0},
            data={"max_len": 30},
            optim={"lr": 1e-3},
        ),
        resume=True,
    )
    runtime = Runtime(Accelerator(cpu=True))
    rankers = [load_run(folder, runtime)[0] for folder in (run, tmp_path / "whole")]
    found = [embed(ranker.reader.encoder, TEXTS, 30) for ranker in rankers]
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)
    assert export(run, tmp_path / "out")["sentence-transformers"] < 1e-5


def test_a_half_reads_the_weights_of_the_whole(tiny):
    """T5's encoder has the weights of the checkpoint's, not new ones."""
    encoder = build_encoder(EncoderConfig(name=tiny("t5")), None)
    whole = AutoModel.from_pretrained(tiny("t5")).encoder.state_dict()
    for name, value in encoder.transformer.encoder.state_dict().items():
        assert torch.equal(value, whole[name])


def test_a_bag_starts_from_any_model_of_texts(tiny):
    for kind in ("gpt2", "t5", "fnet", "xlnet"):
        config = EncoderConfig(name="bag", init=tiny(kind), token_weights="equal")
        assert build_encoder(config, None).table.shape == table_shape(tiny(kind), False)
    with pytest.raises(
        InputError, match="a model of type clip holds a model of texts beside others"
    ):
        build_encoder(EncoderConfig(name="bag", init=tiny("clip"), token_weights="equal"), None)
    with pytest.raises(
        InputError, match="a model of type clip holds a model of texts beside others"
    ):
        table_shape(tiny("clip"), False)


def test_recomputing_is_refused_where_the_model_cannot(tiny):
    with pytest.raises(
        InputError, match=r"gradient_checkpointing is true, .* of type mpnet, cannot do it"
    ):
        build_encoder(EncoderConfig(name=tiny("mpnet"), gradient_checkpointing=True), None)


def test_exported_tokenizers_can_pad(tiny, tmp_path):
    for kind in sorted(WITHOUT_PADDING):
        encoder = build_encoder(EncoderConfig(name=tiny(kind)), None).eval()
        assert encoder.tokenizer.pad_token is None
        (tmp_path / kind).mkdir()
        write_encoder(encoder, tmp_path / kind, 20)
        model = SentenceTransformer(str(tmp_path / kind), device="cpu")
        assert model.tokenizer.pad_token == "</s>"
        assert len(model.tokenizer) <= encoder.transformer.config.vocab_size
