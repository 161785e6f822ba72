"""Labels without text: up to 1 % get their name or id, more are refused by all that read them
alike."""

import numpy as np
import pytest

import eval as evaluation
import train
from engine.conformance.made import write_dataset
from predict import Predictor
from utils.data.dataset import load_dataset
from utils.data.label_texts import label_texts
from utils.errors import InputError

READERS = {  # methods that read label texts
    "dexml": {"method": {"name": "dexml"}},
    "ngame": {"method": {"name": "ngame"}},
    "dexa": {"method": {"name": "dexa", "num_vectors": 8}},
    "elias-1": {"method": {"name": "elias-1", "init": "labels"}},
    "xr-linear": {"method": {"name": "xr-linear", "label_embedding": "pifa+text"}},
}
OTHERS = {
    "ova": {"method": {"name": "ova"}},
    "xr-linear": {"method": {"name": "xr-linear"}},
    "surrogate": {"method": {"name": "surrogate", "num_clusters": 16}},
}
LABELS = 210  # of which two may be without text


def blank(folder, labels, text=""):
    """Take the texts of these labels away."""
    path = folder / "raw" / "Y.txt"
    lines = path.read_text().splitlines()
    for label in labels:
        lines[label] = text
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def config(make_config, tmp_path):
    """config(labels without text, **sections) on a data set of 210 labels."""

    def make(without, names=False, text="", **sections):
        folder = write_dataset(tmp_path / "sets" / "few", labels=LABELS, points=80, filters=False)
        blank(folder, without, text)
        if names:
            (folder / "raw" / "Y_ids.txt").write_text(
                "".join(f"name{label}\n" for label in range(LABELS))
            )
        base = {"data": {"root": str(tmp_path / "sets"), "name": "few"}, "train": {"epochs": 1}}
        return make_config(
            **{
                section: {**base.get(section, {}), **sections.get(section, {})}
                for section in {*base, *sections}
            }
        )

    return make


@pytest.mark.parametrize("reader", READERS)
def test_more_than_one_in_a_hundred_are_refused_alike(config, tmp_path, reader):
    message = rf"Y\.txt: 3 of {LABELS} labels have no text, e.g. line 6, expected at most 1%"
    with pytest.raises(InputError, match=message):
        train.fit(config([5, 9, 200], **READERS[reader]))
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("names", [False, True])
def test_a_name_or_an_id_stands_in(config, reader, names):
    made = config([0, LABELS - 1], names, text=" ", **READERS[reader])
    folder = train.fit(made)
    named = (
        "label 0 as 'name0', label 209 as 'name209'"
        if names
        else "label 0 as '0', label 209 as '209'"
    )
    log = (folder / "train.log").read_text().splitlines()
    assert [named in line for line in log if f"2 of {LABELS} labels have no text" in line] == [True]
    evaluation.evaluate(folder)
    texts = Predictor(folder).label_texts
    assert (texts[0], texts[LABELS - 1]) == (("name0", "name209") if names else ("0", "209"))


@pytest.mark.parametrize("other", OTHERS)
def test_methods_that_read_no_label_texts_take_any(config, other):
    folder = train.fit(config(range(LABELS), **OTHERS[other]))
    assert (folder / "model" / "method.json").is_file()


def test_the_tokens_are_those_of_the_name(config, tiny_encoder):
    made = config([3, 17], names=True)
    labels = [
        f"name{label}" if label in (3, 17) else text
        for label, text in enumerate(label_texts(made.dataset_folder, LABELS))
    ]
    found = load_dataset(made, tiny_encoder).label_tokens
    path = made.dataset_folder / "raw" / "Y.txt"
    path.write_text("".join(f"{text}\n" for text in labels))
    wanted = load_dataset(made, tiny_encoder).label_tokens
    np.testing.assert_array_equal(found.offsets, wanted.offsets)
    np.testing.assert_array_equal(found.ids, wanted.ids)


def test_a_name_without_words_leaves_the_id(config, tiny_encoder):
    made = config([3], text="\u200b")  # no word for the tokenizer, though not blank
    (made.dataset_folder / "raw" / "Y_ids.txt").write_text("\u200b\n" * LABELS)
    tokens = load_dataset(made, tiny_encoder).label_tokens
    ids = [label for label in range(LABELS) if tokens.lengths[label] <= 2]
    assert ids == [] and tokens.lengths[3] == 3


@pytest.mark.parametrize(
    "method", ["dexml", "ngame", "dexa", "ova", "elias-1", "xr-linear", "surrogate"]
)
def test_a_point_without_text_is_a_point_for_every_method(config, method):
    made = config([], **{**READERS, **OTHERS}[method])
    for split in ("trn", "tst"):
        path = made.dataset_folder / "raw" / f"{split}_X.txt"
        lines = path.read_text().splitlines()
        path.write_text("".join(f"{line}\n" for line in ["", " ", *lines[2:]]))
    folder = train.fit(made)
    evaluation.evaluate(folder)
    if method != "surrogate":  # which ranks clusters
        (answers,) = Predictor(folder)([""], k=3)
        assert len(answers) == 3 and all(np.isfinite(answer["score"]) for answer in answers)
