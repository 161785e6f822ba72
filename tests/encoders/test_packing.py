"""Packed texts: embeddings and gradients equal those of padded texts, or packing is refused."""

import json

import numpy as np
import pytest
import torch

import train
from models.encoders import transformer
from models.encoders.building import build_encoder, load_encoder
from models.encoders.masks import square_mask, takes_square_masks
from models.encoders.packing import Packing
from tests.encoders.tiny_encoders import KINDS, POSITIONS, tiny_config
from utils.config.config import EncoderConfig
from utils.data.batches import TextBatch
from utils.data.micro_batches import MicroBatches
from utils.errors import InputError
from utils.pretrained.settings import CAN_PACK, longest_input
from utils.training.grad_cache import GradCache, backward_all

PACKED = sorted(CAN_PACK)
PADDED = ("bart", "gpt2", "modernbert", "mpnet", "qwen3", "t5")
CPU = torch.device("cpu")


def pair(source, **options):
    """The same encoder packed and padded."""
    settings = {"name": source, "dropout": 0.0, **options}
    return [build_encoder(EncoderConfig(**settings, packing=way), None) for way in (True, False)]


def padded_one(source):
    return build_encoder(EncoderConfig(name=source, dropout=0.0, packing=False), None).eval()


def batch_of(lengths, seed=0):
    """Random texts, <s> at the head of each; no padding token in them."""
    rng = np.random.default_rng(seed)
    texts = [[0, *rng.integers(4, 50, n - 1)] if n else [] for n in lengths]
    ids = np.array([token for text in texts for token in text], np.int32)
    return TextBatch(torch.from_numpy(ids), np.array(lengths, np.int64))


def gradients(encoder, texts, weights):
    encoder.zero_grad()
    (encoder(texts) * weights).sum().backward()
    return {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("kind", PACKED)
def test_embeddings_and_gradients_equal_those_of_padded_texts(tiny, kind, pooling):
    packed, padded = pair(tiny(kind), pooling=pooling)
    assert packed.packs(CPU) and not padded.packs(CPU)
    limit = longest_input(tiny_config(kind))  # RoBERTa's positions begin behind its padding's
    texts = batch_of([4, 1, limit, 7, 7, 2, 12])
    expected = padded(texts)
    torch.testing.assert_close(packed(texts), expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    want = gradients(padded, texts, weights)
    got = gradients(packed, texts, weights)
    assert got.keys() == want.keys()
    largest = max(float(value.abs().max()) for value in want.values())
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5 * largest, msg=name)


def test_texts_do_not_see_those_beside_them(tiny):
    packed, _ = pair(tiny("bert"))
    texts = batch_of([6, 3, 9])
    other = batch_of([6, 3, 9])
    other.ids[6:9] = torch.tensor([9, 8, 7], dtype=torch.int32)
    before, after = packed(texts), packed(other)
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], rtol=0, atol=1e-6)
    assert (after[1] - before[1]).abs().max() > 1e-3


def test_a_padding_token_inside_a_text_has_the_position_that_it_has_padded(tiny):
    packed, padded = pair(tiny("roberta"))
    texts = batch_of([5, 4])
    texts.ids[2] = 1  # <pad>
    torch.testing.assert_close(packed(texts), padded(texts), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [[], [5], [1], [0], [0, 0], [3, 0, 2], [POSITIONS]])
def test_few_and_empty_texts(tiny, lengths):
    packed, padded = pair(tiny("bert"))
    texts = batch_of(lengths)
    found = packed(texts)
    assert found.shape == (len(lengths), 16) and found.isfinite().all()
    torch.testing.assert_close(found, padded(texts), rtol=1e-4, atol=1e-5)


def test_a_text_beyond_the_positions_is_named(tiny):
    for encoder in pair(tiny("bert")):
        with pytest.raises(InputError, match="a text has 41 tokens but encoder .* at most 40"):
            encoder(batch_of([3, POSITIONS + 1]))


@pytest.mark.parametrize("kind", PADDED)
def test_what_cannot_be_packed_is_padded_or_refused(tiny, kind, monkeypatch):
    with pytest.raises(InputError, match=r"encoder\.packing is true, but encoder .* of type"):
        build_encoder(EncoderConfig(name=tiny(kind), packing=True), None)
    texts = batch_of([3, 5])
    plain = build_encoder(EncoderConfig(name=tiny(kind), dropout=0.0), None).eval()
    monkeypatch.setattr(transformer, "gpu_computes", lambda: True)  # auto tries, and finds out
    tried = build_encoder(EncoderConfig(name=tiny(kind), dropout=0.0), None).eval()
    assert not tried.packs(torch.device("cuda"))
    assert torch.equal(tried(texts), plain(texts))


def test_what_can_be_packed_is_known(tiny):
    """A kind that begins or ceases to be packed with another transformers shows here."""
    found = []
    for kind in set(KINDS) - {"clip", "fnet", "marian"}:
        try:
            build_encoder(EncoderConfig(name=tiny(kind), packing=True), None)
            found.append(kind)
        except InputError:
            pass
    assert sorted(found) == PACKED


def test_auto_packs_on_a_gpu_alone(tiny, monkeypatch):
    monkeypatch.setattr(transformer, "gpu_computes", lambda: True)
    encoder = build_encoder(EncoderConfig(name=tiny("bert")), None)
    assert encoder.packs(torch.device("cuda")) and not encoder.packs(CPU)
    assert encoder.pads(CPU) and not encoder.pads(torch.device("cuda"))


def test_packing_changes_neither_the_padded_path_nor_what_is_saved(tiny, tmp_path):
    packed, padded = pair(tiny("bert"))
    ids = torch.tensor([[0, 5, 6], [0, 7, 1]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert torch.equal(packed.encode_padded(ids, mask), padded.encode_padded(ids, mask))
    for name, encoder in (("packed", packed), ("padded", padded)):
        encoder.save(tmp_path / name)
    files = [sorted((tmp_path / name).iterdir()) for name in ("packed", "padded")]
    for one, two in zip(*files, strict=True):
        assert one.name == two.name and one.read_bytes() == two.read_bytes()
    again = load_encoder(packed.config, tmp_path / "packed")
    texts = batch_of([4, 2])
    assert again.packs(CPU) and torch.equal(again(texts), packed(texts))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_caching_repeats_dropout(tiny, checkpointing):
    config = EncoderConfig(
        name=tiny("bert"),
        dropout=0.3,
        packing=True,
        gradient_checkpointing=checkpointing,
        normalize=False,
    )
    encoder = build_encoder(config, None).train()
    parts = batch_of([3, 3, 4, 6, 9, 9]).split(2)
    results = []
    for cached in (True, False):
        encoder.zero_grad()
        torch.manual_seed(1)
        cache = GradCache(encoder, MicroBatches(parts))
        embeddings = cache.embed() if cached else torch.cat([encoder(part) for part in parts])
        embeddings.square().sum().backward()
        if cached:
            backward_all([cache])
        found = {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}
        results.append((embeddings.detach(), found))
    assert torch.equal(results[0][0], results[1][0])
    for name, value in results[1][1].items():
        torch.testing.assert_close(results[0][1][name], value, rtol=1e-4, atol=1e-4, msg=name)


def test_it_runs_in_half_precision(tiny):
    packed, padded = pair(tiny("distilbert"))
    texts = batch_of([5, 2, 9])
    with torch.autocast("cpu", torch.bfloat16):
        found = packed(texts)
        expected = padded(texts)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03)
    found.sum().backward()
    assert all(p.grad.isfinite().all() for p in packed.parameters() if p.grad is not None)


def test_packing_pads_and_packs_again():
    packing = Packing.of(batch_of([2, 0, 3]))
    rows = torch.arange(5.0)[:, None]
    padded = packing.pad(rows)
    assert padded[..., 0].tolist() == [[0, 1, 0], [0, 0, 0], [2, 3, 4]]
    assert packing.mask[:, 0, 0].tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert torch.equal(packing.pack(padded), rows)


def test_a_packed_run_is_the_padded_one(make_config, tiny_encoder, tmp_path):
    losses = []
    for packing in (True, False):
        sections = {
            "encoder": {"name": tiny_encoder, "dropout": 0.0, "packing": packing},
            "method": {"micro_batch_tokens": 50},
            "optim": {"lr": 5e-3, "eps": 1e-4},
            "train": {"epochs": 2, "batch_size": 16},
            "run": {"dir": str(tmp_path / str(packing))},
        }
        folder = train.fit(make_config(**sections))
        entries = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        losses.append([entry["loss"] for entry in entries if entry["kind"] == "train"])
        assert f"packing: {str(packing).lower()}" in (folder / "config.yaml").read_text()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("kind", [*PACKED, *PADDED])
def test_square_masks_change_nothing_where_they_are_taken(tiny, kind):
    """They are for a GPU, which would be waited for to look into others."""
    encoder = padded_one(tiny(kind))
    ids, mask = batch_of([4, 1, 7, 2]).padded(1)
    plain = encoder.pool_padded(ids, mask)
    takes = takes_square_masks(encoder.transformer, 1)
    assert takes or kind not in CAN_PACK
    if takes:
        model = encoder.transformer
        states = model(input_ids=ids, attention_mask=square_mask(mask)).last_hidden_state
        weights = mask[..., None]
        assert torch.equal((states * weights).sum(1) / weights.sum(1), plain)


def test_a_window_is_not_overruled_by_a_square_mask(tiny):
    assert not takes_square_masks(padded_one(tiny("modernbert")).transformer, 1)
