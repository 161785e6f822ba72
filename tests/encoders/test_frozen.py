"""Texts that a frozen encoder sees once."""

import copy

import numpy as np
import torch
from accelerate import Accelerator

from models.encoders import frozen
from models.encoders.encoder import build_encoder
from models.method import encode_all
from utils.config.config import EncoderConfig
from utils.tokenization_utils import Tokenizer, tokenize_file, tokenize_texts

ACCELERATOR = Accelerator(cpu=True)


def counted(monkeypatch):
    """Numbers of texts of each call of the slow way."""
    calls = []

    def encode(encoder, tokens, rows, *more):
        calls.append(len(rows))
        return encode_all(encoder, tokens, rows, *more)

    monkeypatch.setattr(frozen, "encode_all", encode)
    monkeypatch.setattr(frozen, "_kept", type(frozen._kept)())
    return calls


def test_each_text_is_encoded_once_by_equal_encoders(tmp_path, tiny_encoder, monkeypatch):
    (tmp_path / "texts.txt").write_text("a shell\nan editor\nthe network\nmail\n")
    encoder = build_encoder(
        EncoderConfig(name="bag", init=tiny_encoder, token_weights="equal"), None
    )
    equal = copy.deepcopy(encoder)
    tokens = tokenize_file(
        tmp_path / "texts.txt", Tokenizer(encoder.tokenizer, 8), tmp_path / "tokens"
    )
    calls = counted(monkeypatch)

    def encode(encoder, rows):
        return frozen.encode_frozen(
            encoder, tokens, np.array(rows, np.int64), 2, ACCELERATOR, "embed"
        )

    def slow(encoder, rows):
        return encode_all(encoder, tokens, np.array(rows, np.int64), 2, ACCELERATOR, "embed")

    torch.testing.assert_close(encode(encoder, [2, 0, 2]), slow(encoder, [2, 0, 2]))
    torch.testing.assert_close(encode(equal, [1, 2]), slow(encoder, [1, 2]))
    assert encode(encoder, []).shape == (0, encoder.dim)
    assert calls == [2, 1]  # texts 0 and 2, then 1
    with torch.no_grad():
        next(equal.parameters()).add_(1)
    torch.testing.assert_close(encode(equal, [0]), slow(equal, [0]))
    assert calls == [2, 1, 1]
    monkeypatch.setattr(frozen, "LIMIT", 2 * 4 * 4 * encoder.dim)  # room for two such files
    with torch.no_grad():
        next(equal.parameters()).add_(1)
    encode(equal, [0])
    assert len(frozen._kept) == 2 and calls == [2, 1, 1, 1]  # the oldest has gone
    frozen.forget()
    encode(equal, [0])
    assert calls == [2, 1, 1, 1, 1]


def test_texts_in_memory_and_files_too_large_are_encoded_every_time(
    tmp_path, tiny_encoder, monkeypatch
):
    (tmp_path / "texts.txt").write_text("a shell\nan editor\n")
    encoder = build_encoder(
        EncoderConfig(name="bag", init=tiny_encoder, token_weights="equal"), None
    )
    tokenizer = Tokenizer(encoder.tokenizer, 8)
    calls = counted(monkeypatch)
    for tokens in (
        tokenize_texts(["a shell", "an editor"], tokenizer),
        tokenize_file(tmp_path / "texts.txt", tokenizer, tmp_path / "tokens"),
    ):
        monkeypatch.setattr(frozen, "LIMIT", 1)
        for _ in range(2):
            frozen.encode_frozen(encoder, tokens, np.arange(2), 2, ACCELERATOR, "embed")
    assert calls == [2, 2, 2, 2]
