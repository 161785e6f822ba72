"""ELIAS's answers: given labels, labels out of reach, other precisions, recall of shortlists."""

import json
import shutil

import numpy as np
import pytest
import scipy.sparse as sp

import eval as evaluation
import train
from engine.conformance.answers import no_collectives
from engine.elias_steps import quantize
from models.elias.report import draw, recall_of
from models.evaluation import FREQUENCIES, bin_name
from tests.elias.conftest import STAGE1, STAGE2, built, ranker_of
from tests.helpers import load
from utils.config.config import ConfigError
from utils.data.batches import training_batches
from utils.data.texts import ListTexts
from utils.training.optim import build_optimizers

TEXTS = ListTexts(["the linux tool", "", "glyph and letter"])


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


def both_runs(make_config, loss="bce", **ranker):
    """The folders of a stage 1, and of a ranker on top of it."""
    stages = [
        {"name": "search", "method": {**STAGE1, "beam": 2}, "loss": {"name": loss}},
        {"name": "rank", "method": {"name": "elias-ranker", **ranker}},
    ]
    folder = train.fit(make_config(method=STAGE1, train={"epochs": 3}, stages=stages))
    return folder / "stages" / "search", folder


LOGS = {"logs": True, "calibrate": False, "elias_weight": 1.0}


@pytest.mark.parametrize(
    ("loss", "more"), [("bce", {}), ("decoupled-softmax", {}), ("decoupled-softmax", LOGS)]
)
def test_scores_of_given_labels(make_config, loss, more):
    """Both methods: labels that are found have their scores, of points and of new texts."""
    for run in both_runs(make_config, loss, candidates=6, **more):
        ranker = ranker_of(run)
        points = load(ranker.config).splits["tst"].texts[np.array([3, 0, 11])]
        for texts in (points, TEXTS):
            for k in (3, 9):
                check_given_scores(ranker.open(texts, given=True), k)
        opened = ranker.open(TEXTS)
        with pytest.raises(ValueError, match=r"expected given labels \[3, c\], got \(2, 1\)"):
            opened.of(np.zeros((2, 1), np.int64))
        with pytest.raises(ValueError, match="expected given labels from -1 to 19, got 0 to 20"):
            opened.of(np.array([[0, 20]] * 3))


def check_given_scores(scores, k):
    """Of three texts: `of` agrees with `best`, and knows labels that the beam does not reach."""
    values, ids = scores.best(k)
    got = scores.given(ids)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, values, rtol=1e-4, atol=1e-6)
    whole = scores.of(np.arange(20)[None].repeat(3, 0))
    assert np.isfinite(whole).all()
    found = np.take_along_axis(whole, ids.clip(0), 1)[ids >= 0]
    np.testing.assert_allclose(found, values[ids >= 0], rtol=1e-4, atol=1e-6)
    assert np.isneginf(scores.given(np.full((3, 2), -1))).all()
    assert scores.of(np.zeros((3, 0), np.int64)).shape == (3, 0)


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
    ranker = ranker_of(folder)
    few, many = (ranker.open(TEXTS).best(k) for k in (4, 12))
    for row in range(len(TEXTS)):
        known = dict(zip(many[1][row].tolist(), many[0][row].tolist(), strict=True))
        for label, score in zip(few[1][row].tolist(), few[0][row].tolist(), strict=True):
            assert known[label] == pytest.approx(score, rel=1e-5)


def test_one_search_answers_again(stage1, monkeypatch):
    """Fewer labels, and those that were scored, are known after a search; more are searched."""
    scores = ranker_of(stage1).open(TEXTS)
    searched = []
    search = type(scores.graph).scored
    monkeypatch.setattr(
        type(scores.graph), "scored", lambda *a: searched.append(len(a[1])) or search(*a)
    )
    many = scores.best(7)
    few = scores.best(3)
    reached = scores.reached()
    assert searched == [3]
    np.testing.assert_array_equal(few[1], many[1][:, :3])
    np.testing.assert_array_equal(few[0], many[0][:, :3])
    for row in range(3):
        assert set(many[1][row].tolist()) <= set(reached[row].tolist())
    assert scores.best(9)[1].shape == (3, 9)
    np.testing.assert_array_equal(scores.best(9)[1][:, :7], many[1])


def test_no_text_and_no_collective(make_config):
    """A process may have no text of a block, and answers alone."""
    for run in both_runs(make_config):
        ranker = ranker_of(run)
        with no_collectives():
            scores = ranker.open(TEXTS[:0])
            values, ids = scores.best(4)
            assert values.shape == ids.shape == (0, 4)
            assert scores.of(np.zeros((0, 2), np.int64)).shape == (0, 2)
            assert len(scores.reached()) == 0
            assert ranker.open(TEXTS[:1]).best(4)[1].shape == (1, 4)


def test_projected_scores_do_not_depend_on_the_block(make_config):
    """Queries are projected and searched `eval.batch_size` at a time."""
    folder = train.fit(make_config(method={**STAGE1, "wl_dim": 8}, train={"epochs": 2}))
    whole = ranker_of(folder).open(TEXTS)
    parts = ranker_of(folder, "--eval.batch_size", "2").open(TEXTS)
    assert whole.projected.shape == (3, 8)
    assert (parts.at_once, whole.at_once) == (2, ranker_of(folder).config.eval.batch_size)
    np.testing.assert_array_equal(parts.best(20)[1], whole.best(20)[1])
    np.testing.assert_allclose(parts.best(20)[0], whole.best(20)[0], rtol=1e-5)
    given = np.array([[4, 2]] * 3)
    np.testing.assert_allclose(parts.of(given), whole.of(given), rtol=1e-5)


def test_a_step_changes_the_scores(make_config):
    """A ranker of a run in training looks at its weights: the next one answers otherwise, with
    averaged weights too."""
    swa = {"swa": True, "swa_start": 0, "swa_step": 1}
    for more in ({}, swa):
        config = make_config(method={**STAGE2, "graph": "cluster", **more})
        learner = built(config)
        optimizers = build_optimizers(learner.groups(), config.optim)
        seen = []
        for batch in training_batches(learner.data.splits["trn"], None, config, 0):
            seen.append(learner.ranker().open(TEXTS).best(5)[0])
            learner.backward(batch)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        assert len(seen) == 3
        assert not np.allclose(seen[0], seen[2])
        # the average of one: the weights after the first step, which joined before the second
        assert np.allclose(seen[1], seen[2]) == bool(more)


# -------------------------------- recall of the shortlists


def slow_recall(ranker, data, split):
    """Share of positives among the labels that are scored, point by point: in all, by frequency,
    and of what a search could find."""
    points = data.splits[split]
    counts = np.bincount(data.splits["trn"].relevance.indices, minlength=data.num_labels)
    in_graph = set(ranker.graph.edges.ravel().tolist())
    hits, total, within = {}, {}, 0
    for row in range(len(points)):
        reached = set(ranker.open(points.texts[np.array([row])]).reached()[0].tolist())
        for label in points.relevance[row].indices.tolist():
            name = next(
                bin_name(first, last)
                for first, last in FREQUENCIES
                if counts[label] >= first and (last is None or counts[label] <= last)
            )
            total[name] = total.get(name, 0) + 1
            hits[name] = hits.get(name, 0) + (label in reached)
            within += label in in_graph
    facts = {f"shortlist_recall[{name}]": 100 * hits[name] / total[name] for name in total}
    facts["shortlist_recall"] = 100 * sum(hits.values()) / sum(total.values())
    facts["recall_ceiling"] = 100 * within / sum(total.values())
    return {name: round(value, 2) for name, value in facts.items()}


def test_recall_equals_the_loops(make_config, tmp_path):
    """In validation, and of the test split."""
    matrix = sp.csr_matrix(np.eye(20, dtype=np.float32)[:18].reshape(3, 6, 20).sum(1))
    sp.save_npz(tmp_path / "A.npz", matrix)
    method = {**STAGE1, "graph": str(tmp_path / "A.npz"), "beam": 1}
    folder = train.fit(make_config(method=method, train={"epochs": 2}))
    evaluation.evaluate(folder)
    ranker = ranker_of(folder)
    data = load(ranker.config)
    for split in ("val", "tst"):
        told = json.loads((folder / f"{split}_metrics.json").read_text())
        recall = {
            name: value
            for name, value in told.items()
            if name.startswith(("shortlist_recall", "recall_ceiling"))
        }
        expected = slow_recall(ranker, data, split)
        assert recall == pytest.approx(expected)
        assert expected["shortlist_recall"] < expected["recall_ceiling"] < 100
    assert [*recall_of(folder)] == [
        name[len("shortlist_recall[") : -1] for name in told if name.startswith("shortlist_recall[")
    ]


def test_plots_of_older_runs(stage1, tmp_path):
    """Their recall stands in the model's folder."""
    folder = tmp_path / "old"
    shutil.copytree(stage1, folder)
    (folder / "val_metrics.json").unlink()
    learned = folder / "model" / "learned.json"
    facts = json.loads(learned.read_text())
    assert not recall_of(folder)
    learned.unlink()
    learned.write_text(json.dumps({**facts, "shortlist_recall[1-2]": 40.0}))
    assert recall_of(folder) == {"1-2": 40.0}
    (folder / "plots" / "graph.png").unlink()
    assert draw(folder).stat().st_size > 5000


def test_a_loaded_model_is_saved_as_it_is(stage1, tmp_path):
    """Its files are linked, whatever they are."""
    before = ranker_of(stage1)
    (tmp_path / "again").mkdir()
    before.save(tmp_path / "again")
    names = {path.name for path in (stage1 / "model").iterdir()}
    assert names == {path.name for path in (tmp_path / "again").iterdir()}
    again = type(before).load(before.config, tmp_path / "again", 20, before.reader.runtime)
    np.testing.assert_array_equal(again.open(TEXTS).best(5)[0], before.open(TEXTS).best(5)[0])


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
    ranker = ranker_of(stage1, "--eval.precision", "int8")
    assert isinstance(ranker.graph.labels.rows, np.memmap)
    other = train.fit(make_config(train={"epochs": 1}, run={"dir": str(tmp_path / "dexml")}))
    with pytest.raises(
        ValueError, match=r"eval.precision is 'int8', but method dexml has no graph index"
    ):
        evaluation.evaluate(other, overrides=["--eval.precision", "int8"])
    with pytest.raises(ConfigError, match="quantize: expected an elias run, .* is one of dexml"):
        quantize(other)
