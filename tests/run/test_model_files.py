"""A run's model is all that answering needs: label texts lie in it once, its format
is known."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

import eval as evaluation
import predict
import train
from engine.conformance.made import WORDS, write_dataset
from engine.predictor import Predictor
from models.loading import load_ranker
from tests.helpers import make_old
from utils.errors import InputError
from utils.run import model_files
from utils.run.finding import find_run
from utils.run.model_files import complete_model, label_texts_of_run
from utils.runtime import Runtime

TREE = {"name": "tree", "method": {"name": "xr-linear"}, "run": {"start_from": None}}
STAGES = (
    {"name": "encoder"},
    {"name": "ova", "method": {"name": "ova"}},
    TREE,
    {
        "name": "fusion",
        "method": {"name": "fusion", "members": {"ova": "stage:ova", "tree": "stage:tree"}},
        "run": {"start_from": None},
    },
)


def write_names(data):
    path = data / "raw" / "Y_ids.txt"
    path.write_text("".join(f"id{label}\n" for label in range(len(WORDS))))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_encoder):
    """(folder of a fusion with its stages, its data set), whose labels have own names."""
    from engine.conformance.made import tiny_sections
    from utils.config.config import build_config

    root = tmp_path_factory.mktemp("travel")
    data = write_dataset(root / "sets" / "tiny")
    write_names(data)
    sections = {"train": {"epochs": 1}, "encoder": {"residual": False}}
    merged = tiny_sections(root / "sets", tiny_encoder, root / "run", sections)
    return train.fit(build_config(merged, {}, STAGES)), data


@pytest.fixture
def copied(trained, tmp_path):
    """(copy of the tree's run, copy of its data set), to be changed."""
    folder, data = trained
    shutil.copytree(folder / "stages" / "tree", tmp_path / "run")
    shutil.copytree(data, tmp_path / "sets" / "tiny")
    return tmp_path / "run", tmp_path / "sets" / "tiny"


def say_format(folder, value):
    path = folder / "model" / "method.json"
    facts = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps({**facts, "format": value}))


def test_label_texts_lie_in_a_run_once(trained):
    folder, data = trained
    stages = [folder / "stages" / name for name in ("encoder", "ova", "tree")]
    models = {run / "model" for run in (folder, *stages)}
    for name, source in (("labels.txt", "Y.txt"), ("label_ids.txt", "Y_ids.txt")):
        files = [*folder.rglob(name)]
        assert {file.parent for file in files} == models
        assert {file.read_bytes() for file in files} == {(data / "raw" / source).read_bytes()}
        assert len({file.stat().st_ino for file in files}) == 1
        assert not os.path.samefile(files[0], data / "raw" / source)
    told = json.loads((folder / "model" / "method.json").read_text())
    assert told["format"] == 1 and len(told["labels_hash"]) == 16


def test_a_run_answers_elsewhere_without_its_data_set(trained, tmp_path, monkeypatch):
    folder, data = trained
    expected = Predictor(folder)(["the vim tool", ""], k=3)
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "stages")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    data.rename(data.with_name("gone"))
    try:
        predictor = Predictor("../copy")
        assert predictor(["the vim tool", ""], k=3) == expected
    finally:
        data.with_name("gone").rename(data)
    assert list(predictor.label_texts) == list(WORDS)


def test_a_label_without_text_is_known_by_its_name_or_id(copied, tmp_path):
    folder, data = copied
    (data / "raw" / "Y.txt").write_text("\n".join(["", *WORDS[1:]]) + "\n")
    for names, stands_in in ((True, "id0"), (False, "0")):
        if not names:
            (data / "raw" / "Y_ids.txt").unlink()
        model = tmp_path / f"{names}" / "model"
        model.mkdir(parents=True)
        shutil.copy(folder / "model" / "method.json", model)
        complete_model(model, data)
        assert label_texts_of_run(model.parent, tmp_path / "none", 20)[0] == stands_in


def test_labels_without_texts_are_numbered(copied, tmp_path):
    folder, data = copied
    (data / "raw" / "Y.txt").unlink()
    model = folder / "model"
    for name in ("labels.txt", "label_ids.txt"):
        (model / name).unlink()
    complete_model(model, data)
    assert not (model / "labels.txt").exists()
    assert list(Predictor(folder).label_texts) == [f"label {label}" for label in range(20)]


def test_texts_that_are_the_same_are_linked_and_others_copied(copied, tmp_path):
    folder, data = copied
    for name in ("same", "other"):
        model = tmp_path / name
        model.mkdir()
        shutil.copy(folder / "model" / "method.json", model)
    complete_model(tmp_path / "same", data, [tmp_path / "none", folder / "model"])
    assert os.path.samefile(tmp_path / "same" / "labels.txt", folder / "model" / "labels.txt")
    (data / "raw" / "Y.txt").write_text("".join(f"{word}\n" for word in reversed(WORDS)))
    complete_model(tmp_path / "other", data, [folder / "model"])
    assert (tmp_path / "other" / "labels.txt").read_text().startswith("robot\n")
    assert (folder / "model" / "labels.txt").read_text().startswith("editor\n")


def test_the_data_set_may_be_written_again_in_place(copied, tmp_path):
    folder, data = copied
    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(folder / "model" / "method.json", model)
    complete_model(model, data)
    with open(data / "raw" / "Y.txt", "r+") as file:
        file.write("XXXX")
    assert (model / "labels.txt").read_text().startswith("editor\n")


def test_damaged_label_texts_are_refused(copied):
    folder, data = copied
    path = folder / "model" / "labels.txt"
    path.write_text("one\ntwo\n")
    with pytest.raises(InputError, match=r"labels.txt has 2 lines, expected one for each of 20"):
        Predictor(folder)
    path.unlink()
    with pytest.raises(InputError, match=r"labels.txt: no such file; expected the texts of the"):
        Predictor(folder)


def test_other_programs_read_the_weights_as_the_docstring_says(trained):
    folder, _ = trained
    run = folder / "stages" / "encoder"
    code = [line[4:] for line in model_files.__doc__.splitlines() if line.startswith("    ")]
    code = "\n".join(line for line in code if "=" in line).replace("RUN/", f"{run}/")
    read = {
        "Path": Path,
        "np": np,
        "load_file": load_file,
        "Tokenizer": Tokenizer,
        "text": "the vim tool",
    }
    exec(code, read)
    answers = Predictor(run)("the vim tool", k=20)
    by_label = {answer["label"]: answer for answer in answers}
    np.testing.assert_allclose(
        read["scores"], [by_label[label]["score"] for label in range(20)], atol=1e-5
    )
    assert read["names"][:20] == [by_label[label]["text"] for label in range(20)]


# ---- format versions


def test_a_newer_model_is_refused_before_anything_else(copied):
    folder, _ = copied
    say_format(folder, 2)
    config = folder / "config.yaml"
    config.write_text(config.read_text() + "section_of_tomorrow: {key: 1}\n")
    message = r"model has format 2, written by a newer version .* up to 1: update XMCKit"
    with pytest.raises(InputError, match=message):
        find_run(folder)


def test_a_newer_member_is_refused(trained, tmp_path):
    folder, _ = trained
    shutil.copytree(folder, tmp_path / "run")
    _, config = find_run(tmp_path / "run")
    member = tmp_path / "run" / "model" / "members" / "tree"
    say_format(member, 7)
    with pytest.raises(
        InputError, match="^[^:]*members/tree/model has format 7, written by a newer"
    ):
        load_ranker(config, tmp_path / "run", Runtime.start(config))


@pytest.mark.parametrize("value", ["1", 1.5, -1, True, None, [1]])
def test_a_format_that_is_no_whole_number_is_refused(copied, value):
    folder, _ = copied
    say_format(folder, value)
    with pytest.raises(InputError, match=r"method.json: format: expected a whole number, got"):
        Predictor(folder)


def test_a_model_of_before_there_were_versions_reads_its_data_set(copied):
    folder, data = copied
    make_old(folder)
    overrides = ["--data.root", str(data.parent)]
    assert list(Predictor(folder, overrides=overrides).label_texts) == list(WORDS)
    shutil.rmtree(data)
    with pytest.raises(InputError, match="no such data set"):
        Predictor(folder, overrides=overrides)


def test_answers_and_the_table_of_labels_have_the_labels_own_names(copied, tmp_path):
    run, _ = copied
    for label in Predictor(run)("the linux tool", k=20):
        assert label["name"] == f"id{label['label']}" and label["text"] == WORDS[label["label"]]
    out = tmp_path / "answers.csv"
    predict.main([str(run), "--text", "vim", "--k", "1", "--out", str(out)])
    head, row = out.read_text().splitlines()
    assert head == "id,text,rank,label,label_text,score,probability,label_name"
    assert row.endswith(f",id{row.split(',')[3]}")
    evaluation.evaluate(run)
    lines = (run / "labels.csv").read_text().splitlines()
    assert lines[0].endswith(",average_precision,name")
    assert [line.rsplit(",", 1)[1] for line in lines[1:]] == [f"id{label}" for label in range(20)]
    (run / "model" / "label_ids.txt").unlink()
    assert "name" not in Predictor(run)("vim")[0]


def test_other_numbers_of_names_are_refused(copied):
    run, _ = copied
    path = run / "model" / "label_ids.txt"
    path.unlink()
    path.write_text("a\nb\n")
    with pytest.raises(InputError, match=r"label_ids.txt has 2 lines, expected .* 20 labels"):
        Predictor(run)
