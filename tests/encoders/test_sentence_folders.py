"""Folders of sentence-transformers: what they say of texts is applied, as the package does, or
refused by name."""

import json
import logging

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import train
from engine.exporter import export
from models.encoders.building import build_encoder
from models.encoders.portable import embed
from models.loading import load_run
from tests.encoders.tiny_encoders import tiny_tokenizer, write_tiny
from utils.config.config import EncoderConfig, read_yaml
from utils.errors import InputError
from utils.pretrained import sentence_prompts
from utils.pretrained.location import load_tokenizer
from utils.pretrained.settings import check_lengths
from utils.pretrained.source import resolve_encoder
from utils.runtime import Runtime
from utils.tokenization_utils import Tokenizer, tokenize_texts

TEXTS = ["the kernel", "a python compiler of linux and the shell : editor tool", "font query", ""]
LONG = ["the " * 30 + "python compiler", "a kernel of linux " * 9, "font"]
QUERY = {"prompts": {"query": "query : "}, "default_prompt_name": "query"}
BOTH = {
    "prompts": {"query": "query : ", "passage": "passage : the ", "document": ""},
    "default_prompt_name": "query",
}


@pytest.fixture
def folder(tmp_path):
    """folder({file: keys to set}, tokenizer={...}) -> a transformer with mean pooling, as the
    package saves it."""

    def make(changes=None, tokenizer=None, kind="roberta"):
        path = write_tiny(kind, tmp_path / f"model-{len(list(tmp_path.iterdir()))}", tokenizer)
        (path / "1_Pooling").mkdir()
        (path / "2_Normalize").mkdir()
        listed = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
        files = {
            "modules.json": [
                {
                    "idx": number,
                    "name": str(number),
                    "path": inside,
                    "type": f"sentence_transformers.models.{module}",
                }
                for number, (module, inside) in enumerate(listed)
            ],
            "1_Pooling/config.json": {"embedding_dimension": 16, "pooling_mode": "mean"},
            "config_sentence_transformers.json": {},
            "sentence_bert_config.json": {"max_seq_length": 20},
        }
        for name, keys in (changes or {}).items():
            files[name] |= keys
        for name, content in files.items():
            (path / name).write_text(json.dumps(content))
        return path

    return make


def built(path, **options):
    return build_encoder(EncoderConfig(name=str(path), **options), None).eval()


def theirs(path, texts, kind="encode"):
    return getattr(SentenceTransformer(str(path), device="cpu"), kind)(
        texts, show_progress_bar=False
    )


def of_labels(encoder, texts, max_len):
    from utils.data.batches import TextBatch

    tokens = tokenize_texts(texts, encoder.label_tokenizer(max_len))
    with torch.no_grad():
        return encoder(TextBatch.take(tokens, np.arange(len(texts)))).numpy()


@pytest.mark.parametrize(
    ("prompts", "before_labels"),
    [
        (QUERY, "query : "),
        (BOTH, "passage : the "),
        ({"prompts": {"x": "the tool "}, "default_prompt_name": "x"}, None),
        ({"prompts": {"query": "query : "}, "default_prompt_name": None}, ""),
        ({}, ""),
    ],
)
def test_the_default_prompt_stands_before_every_text(folder, prompts, before_labels):
    path = folder({"config_sentence_transformers.json": prompts})
    encoder = built(path)
    np.testing.assert_allclose(embed(encoder, TEXTS, 20), theirs(path, TEXTS), atol=1e-5)
    before_labels = prompts["prompts"]["x"] if before_labels is None else before_labels
    expected = (
        theirs(path, [before_labels + text for text in TEXTS], "encode")
        if not prompts.get("default_prompt_name")
        else SentenceTransformer(str(path), device="cpu").encode(TEXTS, prompt=before_labels)
    )
    np.testing.assert_allclose(of_labels(encoder, TEXTS, 20), expected, atol=1e-5)
    plain = embed(built(path, prompt="", label_prompt=""), TEXTS, 20)
    assert np.allclose(plain, theirs(path, TEXTS), atol=1e-5) == (
        not prompts.get("default_prompt_name")
    )


def test_documents_have_the_prompt_that_the_package_gives_them(folder):
    prompts = {
        "prompts": {"query": "query : ", "document": "passage : "},
        "default_prompt_name": "query",
    }
    path = folder({"config_sentence_transformers.json": prompts})
    np.testing.assert_allclose(
        of_labels(built(path), TEXTS, 20), theirs(path, TEXTS, "encode_document"), atol=1e-5
    )


def test_prompts_without_a_default_are_named_once(folder, caplog):
    path = folder(
        {"config_sentence_transformers.json": {"prompts": {"query": "find : ", "other": ""}}}
    )
    with caplog.at_level(logging.INFO, logger=sentence_prompts.__name__):
        built(path)
        resolve_encoder(EncoderConfig(name=str(path)))
    assert [r.getMessage() for r in caplog.records] == [
        f"encoder '{path}' has prompts and no default among them, so none is used: query 'find : "
        "'; encoder.prompt and encoder.label_prompt set them"
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_cut_at_the_end_that_the_tokenizer_says(folder, side):
    path = folder({"sentence_bert_config.json": {"max_seq_length": 9}}, {"truncation_side": side})
    encoder = built(path)
    np.testing.assert_allclose(embed(encoder, LONG, 9), theirs(path, LONG), atol=1e-5)
    ids, lengths = Tokenizer(encoder.tokenizer, 9)(LONG)
    assert lengths.tolist() == [9, 9, 3]
    kept = encoder.tokenizer.decode(ids[1:8])
    assert kept == (
        "the the the the the python compiler" if side == "left" else "the the the the the the the"
    )


@pytest.mark.parametrize(
    ("file", "keys", "message"),
    [
        (
            "config_sentence_transformers.json",
            {"truncate_dim": 8},
            "truncate_dim is 8, which is not supported",
        ),
        (
            "1_Pooling/config.json",
            {"include_prompt": False},
            "include_prompt is false, which leaves the default prompt",
        ),
        (
            "1_Pooling/config.json",
            {"pooling_mode": "lasttoken"},
            "pooling lasttoken, expected cls or mean",
        ),
        (
            "sentence_bert_config.json",
            {"processing_kwargs": {"text": {"padding": "max_length"}}},
            "processing_kwargs is .* not supported",
        ),
        (
            "sentence_bert_config.json",
            {"tokenizer_args": {"truncation_side": "left"}},
            "tokenizer_args: truncation_side",
        ),
        (
            "sentence_bert_config.json",
            {"config_args": {"num_hidden_layers": 1}},
            "config_args: num_hidden_layers is 1",
        ),
        (
            "sentence_bert_config.json",
            {"transformer_task": "fill-mask"},
            "expected the task feature-extraction of texts",
        ),
        (
            "sentence_bert_config.json",
            {"query_length": 7},
            "query_length is 7, which is not supported",
        ),
        (
            "sentence_bert_config.json",
            {"max_seq_length": "many"},
            "max_seq_length must be a number of tokens, got 'many'",
        ),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "query "},
            "default_prompt_name is 'query ', ",
        ),
        (
            "config_sentence_transformers.json",
            {"prompts": ["query : "]},
            "prompts must be a mapping of names to texts",
        ),
    ],
)
def test_what_is_not_applied_is_refused_by_name(folder, file, keys, message):
    changes = {"config_sentence_transformers.json": dict(QUERY)}
    changes.setdefault(file, {}).update(keys)
    path = folder(changes)
    with pytest.raises(InputError, match=f"encoder '{path}': {file}: {message}"):
        built(path)


def test_include_prompt_without_a_prompt_says_nothing(folder):
    path = folder({"1_Pooling/config.json": {"include_prompt": False}})
    np.testing.assert_allclose(embed(built(path), TEXTS, 20), theirs(path, TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "modules.json",
        "1_Pooling/config.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "tokenizer_config.json",
    ],
)
@pytest.mark.parametrize("content", ["[1, 2", "3", '"text"', "\udcff"])
def test_damaged_files_are_named(folder, name, content):
    path = folder()
    if name == "tokenizer_config.json":
        (path / "sentence_bert_config.json").unlink()
    (path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=f"{name}: (damaged|expected|not JSON)"):
        resolve_encoder(EncoderConfig(name=str(path)))


@pytest.mark.parametrize("bag", [False, True])
def test_weights_that_were_cut_off_are_named(folder, bag):
    path = folder()
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    section = EncoderConfig(name="bag", init=str(path)) if bag else EncoderConfig(name=str(path))
    with pytest.raises(InputError, match=f"{weights}: not a safetensors file"):
        build_encoder(section, None)


def test_older_folders_have_these_files_inside(folder, tmp_path):
    path = folder({"sentence_bert_config.json": {"max_seq_length": 7}})
    inside = path / "0_Transformer"
    inside.mkdir()
    for file in path.glob("*"):
        if file.is_file() and file.name not in (
            "modules.json",
            "config_sentence_transformers.json",
        ):
            file.rename(inside / file.name)
    modules = json.loads((path / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (path / "modules.json").write_text(json.dumps(modules))
    np.testing.assert_allclose(embed(built(path), LONG, 7), theirs(path, LONG), atol=1e-5)


@pytest.mark.parametrize("name", ["transformer", "bag"])
def test_a_run_keeps_its_prompts(folder, make_config, tmp_path, name):
    """In its config, in predictions, for new labels, in its export, and in a run that starts from
    either."""
    path = folder({"config_sentence_transformers.json": BOTH})
    encoder = (
        {"name": str(path)}
        if name == "transformer"
        else {
            "name": "bag",
            "init": str(path),
            "prompt": "query : ",
            "label_prompt": "passage : the ",
        }
    )
    config = make_config(encoder=encoder, train={"epochs": 1})
    run = train.fit(config)
    saved = read_yaml(run / "config.yaml")["encoder"]
    assert (saved["prompt"], saved["label_prompt"]) == ("query : ", "passage : the ")
    ranker, _ = load_run(run, Runtime.start(config))
    encoder = ranker.reader.encoder
    expected = embed(encoder, TEXTS, 16)
    labels = (config.dataset_folder / "raw" / "Y.txt").read_text().splitlines()
    np.testing.assert_allclose(of_labels(encoder, labels, 16), ranker.label_embeddings, atol=1e-5)
    assert export(run, tmp_path / "out")["sentence-transformers"] < 1e-5
    assert (
        '"query : ", before a label\'s text "passage : the "'
        in (tmp_path / "out" / "README.md").read_text()
    )
    np.testing.assert_allclose(
        theirs(tmp_path / "out", labels, "encode_document"), ranker.label_embeddings, atol=1e-5
    )
    for source in (tmp_path / "out", run / "model"):
        again = built(source)
        assert (again.config.prompt, again.config.label_prompt) == ("query : ", "passage : the ")
        torch.testing.assert_close(embed(again, TEXTS, 16), expected, atol=1e-5, rtol=0)


def test_a_prompt_that_leaves_no_room_is_refused(make_config, folder):
    path = folder(
        {
            "config_sentence_transformers.json": {
                "prompts": {"x": "the " * 12},
                "default_prompt_name": "x",
            }
        }
    )
    with pytest.raises(
        InputError, match="has 14 tokens, special ones included, and texts are cut at 14: no room"
    ):
        train.fit(make_config(encoder={"name": str(path)}, data={"max_len": 14}))
    check_lengths(make_config(encoder={"name": str(path)}, data={"max_len": 20}))


def test_token_files_of_other_prompts_are_others(tmp_path):
    tokenizer = tiny_tokenizer()
    names = {
        Tokenizer(tokenizer, 9, prompt=prompt).fingerprint()
        for prompt in ("", "query : ", "passage : ")
    }
    assert len(names) == 3
    assert (
        Tokenizer(load_tokenizer("minilm"), 9).fingerprint() == Tokenizer("minilm", 9).fingerprint()
    )
