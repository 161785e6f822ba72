"""How long a text each type of transformer takes, found by asking the models themselves."""

import json

import pytest
import torch
from transformers import AutoModel

import train
from tests.encoders.tiny_encoders import KINDS, POSITIONS, tiny_config, write_tiny
from utils.config.config import ConfigError, EncoderConfig
from utils.pretrained.settings import Limit, check_lengths, longest_input, longest_text

UNLIMITED = {"bloom", "deberta-v2", "longt5", "mamba", "mt5", "t5", "xlnet"}
# run beyond what they were made for
BY_ROTATION = {"gemma3", "llama", "mistral", "modernbert", "qwen2", "qwen3"}
CANNOT_READ = {"clip", "longt5", "marian", "mt5", "t5"}  # as AutoModel builds them


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_positions_are_what_the_model_has(kind):
    settings = tiny_config(kind)
    found = longest_input(settings)
    if kind in UNLIMITED:
        assert found is None
    elif kind in BY_ROTATION | CANNOT_READ:
        assert found == POSITIONS
    else:
        model = AutoModel.from_config(settings).eval()
        with torch.no_grad():
            model(input_ids=torch.full((1, found), 7))
            with pytest.raises((IndexError, RuntimeError, ValueError)):
                model(input_ids=torch.full((1, found + 1), 7))


def test_a_padding_id_far_from_one_counts():
    assert longest_input(tiny_config("roberta", pad_token_id=7)) == POSITIONS - 8
    # MPNet's code has 1
    assert longest_input(tiny_config("mpnet", pad_token_id=7)) == POSITIONS - 2
    assert longest_input(tiny_config("bert", pad_token_id=7)) == POSITIONS


@pytest.mark.parametrize(
    "data", [{"max_len": POSITIONS - 1}, {"max_len": 9, "label_max_len": POSITIONS - 1}]
)
def test_longer_texts_are_refused_before_training(make_config, tmp_path, data):
    folder = str(write_tiny("roberta", tmp_path / "roberta"))
    config = make_config(encoder={"name": folder}, data=data)
    key = "label_max_len" if "label_max_len" in data else "max_len"
    with pytest.raises(
        ConfigError,
        match=f"data.{key} is 39, but encoder '.*' takes texts of at most 38 tokens "
        rf"\(positions of its model, roberta\); lower data.{key}",
    ):
        train.fit(config)
    assert not config.run_folder.exists()
    check_lengths(make_config(encoder={"name": folder}, data={"max_len": POSITIONS - 2}))
    # sums any number of tokens
    check_lengths(make_config(encoder={"name": "bag", "init": folder}, data=data))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"sentence_bert_config.json": {"max_seq_length": 12}},
            Limit(12, "max_seq_length in its sentence_bert_config.json"),
        ),
        ({}, Limit(30, "model_max_length in its tokenizer_config.json")),
        (
            {"sentence_bert_config.json": {"max_seq_length": 99}},
            Limit(40, "positions of its model, bert"),
        ),
    ],
)
def test_folders_of_sentence_transformers_say_how_long(tmp_path, files, expected):
    folder = write_tiny("bert", tmp_path, {"model_max_length": 30})
    (folder / "1_Pooling").mkdir()
    modules = [
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
    ]
    for name, content in {
        "1_Pooling/config.json": {"pooling_mode": "mean"},
        "modules.json": modules,
        **files,
    }.items():
        (folder / name).write_text(json.dumps(content))
    assert longest_text(EncoderConfig(name=str(folder))) == expected
