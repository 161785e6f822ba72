"""Readers: texts that a frozen encoder sees once, and one in training sees again."""

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from models.encoders import reader
from models.encoders.building import build_encoder
from models.encoders.reader import Reader
from tests.helpers import counted_encodings
from utils.config.config import EncoderConfig
from utils.data.texts import ListTexts
from utils.runtime import Runtime
from utils.tokenization_utils import tokenize_file

CPU = Runtime(Accelerator(cpu=True))
TEXTS = ["a shell", "an editor", "the network", "mail"]


@pytest.fixture
def encoder(tiny_encoder):
    settings = EncoderConfig(name="bag", init=tiny_encoder, token_weights="equal")
    return build_encoder(settings, None)


@pytest.fixture
def frozen(make_config, monkeypatch):
    """frozen(encoder) -> its frozen reader; nothing is kept from before."""
    monkeypatch.setattr(reader, "_kept", type(reader._kept)())
    return lambda encoder: Reader.frozen(encoder, make_config(), CPU)


@pytest.fixture
def tokens(encoder, frozen, tmp_path):
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    tokenizer = frozen(encoder).tokenizer
    return tokenize_file(tmp_path / "texts.txt", tokenizer, tmp_path / "tokens")


def test_each_text_of_a_file_is_encoded_once_by_equal_encoders(
    encoder, frozen, tokens, make_config, monkeypatch
):
    equal = copy.deepcopy(encoder)
    training = Reader.of(encoder, make_config(), CPU)

    def encode(one, rows):
        return one.encode(tokens, np.array(rows, np.int64))

    first, second = frozen(encoder), frozen(equal)
    expected = training._encode(tokens, np.arange(4), "embed")
    with counted_encodings() as calls:
        reader.forget()
        torch.testing.assert_close(encode(first, [2, 0, 2]), expected[[2, 0, 2]])
        torch.testing.assert_close(encode(second, [1, 2]), expected[[1, 2]])
        assert encode(first, []).shape == (0, encoder.dim)
        assert calls == [2, 1]  # texts 0 and 2, then 1
        with torch.no_grad():
            next(equal.parameters()).add_(1)
        other = frozen(equal)  # other weights, another key
        assert other.key != first.key == second.key
        assert not torch.allclose(encode(other, [0]), expected[[0]])
        assert calls == [2, 1, 1]
        monkeypatch.setattr(reader, "LIMIT", 2 * 4 * 4 * encoder.dim)  # room for two such files
        with torch.no_grad():
            next(equal.parameters()).add_(1)
        encode(frozen(equal), [0])
        assert len(reader._kept) == 2 and calls == [2, 1, 1, 1]  # the oldest has gone


def test_files_too_large_and_encoders_in_training_are_encoded_every_time(
    encoder, frozen, tokens, make_config, monkeypatch
):
    monkeypatch.setattr(reader, "LIMIT", 1)
    training = Reader.of(encoder, make_config(), CPU)
    assert training.key is None
    with counted_encodings() as calls:
        for one in (frozen(encoder), training):
            for _ in range(2):
                one.encode(tokens, np.arange(2))
    assert calls == [2, 2, 2, 2]


def test_texts_in_memory_remember_what_a_frozen_reader_made(encoder, frozen, make_config):
    texts = ListTexts(TEXTS)
    equal = copy.deepcopy(encoder)
    with counted_encodings() as calls:
        kept = texts.embeddings(frozen(encoder))
        assert texts.embeddings(frozen(equal)) is kept
        training = Reader.of(encoder, make_config(), CPU)
        for _ in range(2):
            torch.testing.assert_close(texts.embeddings(training), kept)
    assert calls == [4, 4, 4]
