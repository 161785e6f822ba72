"""ELIAS's answers: given labels, labels out of reach, other precisions."""

import json

import numpy as np
import pytest
import scipy.sparse as sp
from accelerate import Accelerator

import eval as evaluation
import train
from elias_utils import quantize
from models.loading import load_method
from tests.elias.conftest import STAGE1
from tests.helpers import load
from utils.config.config import ConfigError
from utils.run.finding import find_run


def test_unreachable_labels_are_counted_and_never_found(make_config, tmp_path, caplog):
    """Their clusters are not cluster 0 either."""
    matrix = sp.csr_matrix(np.eye(20, dtype=np.float32)[:18].reshape(2, 9, 20).sum(1))
    sp.save_npz(tmp_path / "A.npz", matrix)
    folder = train.fit(
        make_config(method={**STAGE1, "graph": str(tmp_path / "A.npz")}, train={"epochs": 2})
    )
    assert (
        "2 of 20 labels are in no cluster and can never be found"
        in (folder / "train.log").read_text()
    )
    facts = json.loads((folder / "val_metrics.json").read_text())
    assert facts["labels_unreachable"] == 2
    assert 0 < facts["recall_ceiling"] < 100
    assert facts["shortlist_recall"] <= facts["recall_ceiling"] + 0.01
    evaluation.evaluate(folder)
    scores = sp.load_npz(folder / "tst_score_mat.npz")
    assert not np.isin([18, 19], scores.indices).any()
    assert np.diff(scores.indptr).max() <= 18


@pytest.mark.parametrize("kind", ["bce", "shares", "logs without a tree"])
def test_scores_of_given_labels(make_config, kind):
    """Both methods: labels that score_points returns have its scores, for points and for texts."""
    loss = {"name": "bce" if kind == "bce" else "decoupled-softmax"}
    more = (
        {"logs": True, "calibrate": False, "elias_weight": 1.0}
        if kind == "logs without a tree"
        else {}
    )
    stages = [
        {"name": "search", "method": {**STAGE1, "beam": 2}, "loss": loss},
        {"name": "rank", "method": {"name": "elias-ranker", "candidates": 6, **more}},
    ]
    folder = train.fit(make_config(method=STAGE1, train={"epochs": 3}, stages=stages))
    accelerator = Accelerator(cpu=True)
    for run in (folder / "stages" / "search", folder):
        config = find_run(run)[1]
        method = load_method(config, run)
        split = load(config).splits["tst"]
        points = np.array([3, 0, 11])
        texts = ["the linux tool", "", "glyph and letter"]
        kinds = (
            (method.score_points, method.score_labels, (split, points)),
            (method.score_texts, method.score_labels_of_texts, (texts,)),
        )
        for k in (3, 9):
            for search, score_given, of in kinds:

                def score(given, how=score_given, of=of):
                    return how(*of, given, accelerator)

                values, ids = search(*of, k, accelerator)
                got = score(ids)
                assert got.dtype == np.float32
                np.testing.assert_allclose(got, values, rtol=1e-4, atol=1e-6)
                order = np.arange(20)[None].repeat(3, 0)
                whole = score(order)
                assert np.isfinite(whole).all()  # those that the beam does not reach too
                np.testing.assert_allclose(
                    np.take_along_axis(whole, ids.clip(0), 1)[ids >= 0],
                    values[ids >= 0],
                    rtol=1e-4,
                    atol=1e-6,
                )
                assert np.isneginf(score(np.full((3, 2), -1))).all()
                assert score(np.zeros((3, 0), np.int64)).shape == (3, 0)
        with pytest.raises(ValueError, match=r"expected given labels \[3, c\], got \(2, 1\)"):
            method.score_labels(split, points, np.zeros((2, 1), np.int64), accelerator)
        with pytest.raises(ValueError, match="expected given labels from -1 to 19, got 0 to 20"):
            method.score_labels_of_texts(["a"], np.array([[0, 20]]), accelerator)


def test_a_score_does_not_depend_on_how_many_are_asked_for(make_config):
    """ELIAS's scores become shares of its `candidates` best, however many labels are ranked."""
    stages = [
        {"name": "search", "method": STAGE1, "loss": {"name": "decoupled-softmax"}},
        {
            "name": "rank",
            "method": {"name": "elias-ranker", "candidates": 4, "logs": True, "elias_weight": 1.0},
        },
    ]
    folder = train.fit(make_config(method=STAGE1, stages=stages))
    method = load_method(find_run(folder)[1], folder)
    found = [method.score_texts(["the linux tool"], k, Accelerator(cpu=True)) for k in (4, 12)]
    both = [dict(zip(ids[0].tolist(), values[0].tolist(), strict=True)) for values, ids in found]
    assert all(both[1][label] == pytest.approx(score, rel=1e-5) for label, score in both[0].items())


def test_eval_in_other_precisions(stage1, make_config, tmp_path):
    """Converted in memory, then from files, which are mapped."""
    exact = evaluation.evaluate(stage1)["P@1"]
    found = {}
    for precision in ("bfloat16", "int8"):
        found[precision] = evaluation.evaluate(stage1, overrides=["--eval.precision", precision])[
            "P@1"
        ]
        assert found[precision] == pytest.approx(exact, abs=11)
        assert quantize(stage1, precision) == stage1 / "model"
        assert (stage1 / "model" / f"labels.{precision}.npy").is_file()
        assert (
            evaluation.evaluate(stage1, overrides=["--eval.precision", precision])["P@1"]
            == found[precision]
        )
    method = load_method(find_run(stage1, ["--eval.precision", "int8"])[1], stage1)
    assert isinstance(method.index.labels.rows, np.memmap)
    other = train.fit(make_config(train={"epochs": 1}, run={"dir": str(tmp_path / "dexml")}))
    with pytest.raises(
        ValueError, match=r"eval.precision is 'int8', but method dexml has no graph index"
    ):
        evaluation.evaluate(other, overrides=["--eval.precision", "int8"])
    with pytest.raises(ConfigError, match="quantize: expected an elias run, .* is one of dexml"):
        quantize(other)
