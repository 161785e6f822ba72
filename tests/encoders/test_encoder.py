import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.encoders import bag
from models.encoders.bag import BagEncoder, inverse_document_frequency
from models.encoders.building import build_encoder, load_encoder
from tests.encoders.tiny_encoders import tiny_tokenizer, write_tiny
from utils.config.config import EncoderConfig
from utils.data.batches import TextBatch
from utils.errors import InputError
from utils.pretrained.location import file_of, load_tokenizer, resolve
from utils.text import text_list
from utils.tokenization_utils import Tokenizer, tokenize_texts

TEXTS = [
    "a four pane file manager",
    "",
    "the kernel the kernel",
    "media player and video converter for the desktop",
]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("minilm")


def batch_of(texts, tokenizer):
    return TextBatch.take(tokenize_texts(texts, Tokenizer(tokenizer, 32)), np.arange(len(texts)))


def small_bag(vocabulary=200, width=8, **options):
    torch.manual_seed(0)
    config = EncoderConfig(name="bag", **options)
    encoder = BagEncoder(
        config,
        "minilm",
        np.random.default_rng(0).uniform(0.5, 2, vocabulary),
        torch.randn(vocabulary, width),
    )
    return encoder


def small_batch(vocabulary=200):
    rng = np.random.default_rng(1)
    lengths = np.array([3, 0, 7, 1])
    return TextBatch(
        torch.from_numpy(rng.integers(0, vocabulary, lengths.sum()).astype(np.int32)), lengths
    )


def naive_bag(encoder, batch, table, weights):
    rows = []
    for start, stop in zip(batch.offsets[:-1], batch.offsets[1:], strict=True):
        total = torch.zeros(table.shape[1], dtype=table.dtype)
        for token in batch.ids[start:stop].long():
            total = total + weights[token, 0] * table[token]
        rows.append(total)
    pooled = torch.stack(rows)
    if encoder.config.normalize:
        pooled = F.normalize(pooled, dim=-1)
    if encoder.residual is not None:
        pooled = pooled + F.gelu(pooled) @ encoder.residual.weight.T
    if encoder.projection is not None:
        pooled = pooled @ encoder.projection.weight.T + encoder.projection.bias
    return F.normalize(pooled, dim=-1) if encoder.config.normalize else pooled


@pytest.mark.parametrize(
    "options", [{}, {"normalize": False}, {"residual": False}, {"projection": 3}]
)
def test_bag_and_its_gradients_equal_a_loop_over_tokens(options):
    encoder = small_bag(**options)
    batch = small_batch()
    if encoder.residual is not None:
        torch.nn.init.normal_(encoder.residual.weight, std=0.3)
    table = encoder.table.detach().clone().requires_grad_()
    weights = encoder.token_weights.detach().clone().requires_grad_()
    expected = naive_bag(encoder, batch, table, weights)
    got = encoder(batch)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    direction = torch.randn_like(got)
    (expected * direction).sum().backward()
    (got * direction).sum().backward()
    for parameter, reference in ((encoder.table, table), (encoder.token_weights, weights)):
        assert parameter.grad.is_sparse
        assert set(parameter.grad.coalesce().indices()[0].tolist()) == set(batch.ids.tolist())
        torch.testing.assert_close(parameter.grad.to_dense(), reference.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("entries", [0, 1, 2, 40])
def test_padded_runs_are_the_runs_and_the_last_value_again(entries):
    ordered = torch.randint(9, (entries,), dtype=torch.int32).sort().values
    expected, expected_counts = bag.runs(ordered)
    values, counts = bag.padded_runs(ordered)
    assert len(values) == len(counts) == entries
    assert torch.equal(values[: len(expected)], expected)
    assert torch.equal(counts[: len(expected)], expected_counts)
    assert counts.sum() == entries
    assert (values[len(expected) :] == ordered[-1:]).all()


def test_padding_of_the_index_does_not_change_gradients():
    """A GPU has it."""
    gradients = []
    for is_padded in (False, True):
        encoder = small_bag()
        torch.manual_seed(0)
        texts = small_batch(vocabulary=5)  # 11 tokens
        texts.bag_index = bag.BagIndex(texts)
        assert not texts.bag_index.is_padded
        texts.bag_index.is_padded = is_padded
        (encoder(texts) * torch.randn(4, 8)).sum().backward()
        parameters = (encoder.table, encoder.token_weights)
        gradients.append([parameter.grad.to_dense() for parameter in parameters])
        assert (encoder.table.grad._nnz() == 11) == is_padded
    for padded, reference in zip(*gradients, strict=True):
        assert torch.equal(padded, reference)


def test_bag_starts_from_the_token_embeddings_and_counts(tokenizer):
    class Data:
        @staticmethod
        def token_document_counts(size):
            counts = np.zeros(size, np.int64)
            counts[[101, 102]], counts[2000] = 50, 5
            return counts, 50

    encoder = build_encoder(EncoderConfig(name="bag"), Data)
    assert encoder.table.shape == (30522, 384)
    assert encoder.token_weights[101].item() == 0.0  # in every text: says nothing
    assert encoder.token_weights[2000].item() == pytest.approx(np.log(51 / 6), rel=1e-6)
    equal = build_encoder(EncoderConfig(name="bag", token_weights="equal"), None)
    assert equal.token_weights.unique().tolist() == [1.0]
    assert torch.equal(equal.table, encoder.table)
    assert inverse_document_frequency(np.array([0]), 0).tolist() == [0.0]


def test_minilm_gives_the_published_embeddings(tokenizer):
    from sentence_transformers import SentenceTransformer

    encoder = build_encoder(EncoderConfig(name="minilm"), None).eval()
    with torch.no_grad():
        got = encoder(batch_of(TEXTS, tokenizer))
    expected = SentenceTransformer(resolve("minilm"), device="cpu").encode(
        TEXTS, convert_to_tensor=True
    )
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_text_does_not_depend_on_its_neighbours_padding(tokenizer, pooling):
    encoder = build_encoder(
        EncoderConfig(name="minilm", pooling=pooling, layers=1, normalize=False), None
    ).eval()
    with torch.no_grad():
        together = encoder(batch_of(TEXTS, tokenizer))
        alone = torch.cat([encoder(batch_of([t], tokenizer)) for t in TEXTS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_options_of_transformers(tokenizer):
    encoder = build_encoder(
        EncoderConfig(
            name="minilm", layers=2, projection=10, dropout=0.0, gradient_checkpointing=True
        ),
        None,
    )
    assert len(encoder.transformer.encoder.layer) == 2
    assert encoder.transformer.is_gradient_checkpointing
    assert encoder.transformer.config._attn_implementation == "sdpa"
    out = encoder.train()(batch_of(TEXTS, tokenizer))
    assert out.shape == (4, 10)
    torch.testing.assert_close(out.norm(dim=1), torch.ones(4))
    out[:, 0].sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())  # nothing is left unused
    # dropout 0
    assert torch.equal(encoder(batch_of(TEXTS, tokenizer)), encoder(batch_of(TEXTS, tokenizer)))
    with pytest.raises(ValueError, match="encoder.layers is 7 but the model has 6 layers"):
        build_encoder(EncoderConfig(name="minilm", layers=7), None)


def test_a_process_without_texts_takes_part(tokenizer):
    encoder = build_encoder(EncoderConfig(name="minilm", layers=1, projection=5), None)
    out = encoder(batch_of([], tokenizer))
    assert out.shape == (0, 5)
    out.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in encoder.parameters())


def test_too_long_texts_are_refused(tokenizer):
    encoder = build_encoder(EncoderConfig(name="minilm", layers=1), None)
    long = TextBatch(torch.ones(600, dtype=torch.int32), np.array([600]))
    with pytest.raises(ValueError, match="600 tokens .* at most 512; lower data.max_len"):
        encoder(long)


@pytest.mark.parametrize(
    "config",
    [
        EncoderConfig(name="bag", projection=5, token_weights="equal"),
        EncoderConfig(name="minilm", layers=1),
        EncoderConfig(name="minilm", layers=1, projection=5, pooling="cls"),
    ],
)
def test_saved_encoders_come_back_equal(config, tmp_path, tokenizer):
    encoder = build_encoder(config, None).eval()
    for p in encoder.parameters():
        if not p.requires_grad or p.dim() < 2:
            continue
        p.data.add_(0.01 * torch.randn_like(p))
    encoder.save(tmp_path)
    again = load_encoder(config, tmp_path).eval()
    batch = batch_of(TEXTS, tokenizer)
    with torch.no_grad():
        assert torch.equal(encoder(batch), again(batch))
    assert again.tokenizer("a text")["input_ids"] == tokenizer("a text")["input_ids"]
    if config.projection:
        (tmp_path / "head.safetensors").unlink()
        if config.name == "bag":
            with pytest.raises(ValueError, match="head.safetensors"):
                load_encoder(config, tmp_path)


@pytest.mark.parametrize("name", ["bag", "transformer"])
def test_a_tokenizer_with_more_tokens_than_the_encoder_is_refused(tmp_path, name):
    folder = str(write_tiny("bert", tmp_path))
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["newword", "another"])
    tokenizer.save_pretrained(folder)
    config = (
        EncoderConfig(name="bag", init=folder, token_weights="equal")
        if name == "bag"
        else EncoderConfig(name=folder)
    )
    count = len(tokenizer)
    with pytest.raises(
        InputError,
        match=f"has {count} tokens, encoder '.*' has embeddings for {count - 2}: .*added",
    ):
        build_encoder(config, None)


@pytest.mark.parametrize("text", ["caf\udce9", "half a \ud83d pair", "\udfff"])
def test_texts_that_are_no_unicode_are_named_by_number(tokenizer, text):
    half = f"U\\+{next(ord(c) for c in text if 0xD800 <= ord(c) < 0xE000):04X}"
    with pytest.raises(
        InputError, match=rf"expected Unicode, got .* at place 2, .* surrogate, {half}"
    ):
        tokenize_texts(["fine", "café", text, "more"], Tokenizer(tokenizer, 16))


def test_lists_of_texts_are_checked_for_unicode_before_any_method_sees_them():
    with pytest.raises(
        InputError, match=r"labels: expected Unicode, got 'b\\ud83d' at place 1, .* U\+D83D"
    ):
        text_list(["a", "b\ud83d"], "labels")
    assert text_list(["a", "b\U0001f600"], "labels") == ["a", "b\U0001f600"]


def test_a_hub_that_cannot_be_reached_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(
        "utils.pretrained.location._reach_hub", lambda: (_ for _ in ()).throw(OSError("no network"))
    )
    for _ in range(3):
        assert file_of("no/such-at-all", "modules.json") is None
    assert caplog.text.count("whether it has modules.json cannot be found out") == 1


def test_unknown_encoders_name_what_was_tried(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "utils.pretrained.location._reach_hub", lambda: (_ for _ in ()).throw(OSError("no network"))
    )
    with pytest.raises(
        ValueError, match=r"encoder 'no/such' cannot be loaded: tried the folder .*need no network"
    ):
        build_encoder(EncoderConfig(name="no/such"), None)
    with pytest.raises(ValueError, match=r"has no config\.json"):
        build_encoder(EncoderConfig(name=str(tmp_path)), None)
