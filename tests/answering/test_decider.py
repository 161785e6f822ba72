"""What is saved beside a model: the same when it is read, and checked before it is believed."""

import numpy as np
import pytest
import scipy.sparse as sp

from utils.answering.decider import DECIDER, Decider, fit_decider
from utils.config.sections import EvalConfig
from utils.errors import InputError


@pytest.fixture(scope="module")
def scored():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(200, 12)).astype(np.float32)
    relevance = rng.random((200, 12)) < 1 / (1 + np.exp(2 - 2 * scores))
    return sp.csr_matrix(scores), sp.csr_matrix(relevance)


@pytest.fixture(scope="module")
def decider(scored):
    return fit_decider(*scored)


def test_what_is_read_is_what_was_saved(decider, tmp_path):
    path = tmp_path / DECIDER
    decider.save(path)
    again = Decider.load(path, 12)
    for goal in ("micro_f1", "macro_f1", "precision"):
        options = EvalConfig(threshold_for=goal)
        expected = decider.thresholds(options)
        found = again.thresholds(options)
        assert found.value == expected.value and (found.values == expected.values).all()
    assert again.ece == decider.ece and again.num_points == 200
    first = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == first


def test_a_saved_file_does_not_change_a_linked_one(decider, tmp_path):
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / DECIDER).hardlink_to(tmp_path / "other")
    decider.save(tmp_path / DECIDER)
    assert (tmp_path / "other").read_bytes() == b"other"


def test_a_wanted_precision(decider, scored):
    scores, relevance = scored
    probabilities = decider.calibration(scores.toarray(), -np.sort(-scores.toarray(), axis=1))
    for wanted in (0.3, 0.5, 0.6):
        options = EvalConfig(threshold_for="precision", wanted_precision=wanted)
        answers = probabilities >= decider.thresholds(options).value
        precision = relevance.toarray()[answers].mean()
        assert wanted <= precision < wanted + 0.15
    with pytest.raises(InputError, match=r"no threshold had that on the 200 validation points; "):
        decider.thresholds(EvalConfig(threshold_for="precision", wanted_precision=1.0))


def test_labels_own_thresholds_can_be_left_out(decider):
    found = decider.thresholds(EvalConfig(label_thresholds=False))
    assert len(found.labels) == 0
    assert found.value == decider.thresholds(EvalConfig()).value


def test_given_probabilities_are_not_calibrated(scored):
    scores, relevance = scored
    said = 1 / (1 + np.exp(2 - 2 * scores.data.astype(np.float64)))
    found = fit_decider(scores, relevance, said)
    assert found.calibration is None and found.ece < 4


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("curve", lambda a: a * 3, "curve: expected fractions from 0 to 1"),
        ("curve", lambda a: a[::-1], "curve: expected the highest thresholds first"),
        ("curve", lambda a: a[:, :3], r"curve: expected shape \(any, 6\)"),
        ("bins", lambda a: -a, "bins: expected shares from 0 to 1"),
        ("micro_f1.value", lambda a: a + 2, "micro_f1: expected thresholds from 0 to 1"),
        ("micro_f1.labels", lambda a: np.array([99]), "expected a threshold for each of ascending"),
        ("score.weights", lambda a: a * np.nan, "expected finite numbers"),
        ("score.is_logit", lambda a: a + 5, "is_logit: expected 0 or 1"),
        ("num_points", lambda a: a.astype(float), "num_points: expected values of int64"),
        ("num_points", lambda a: a - a, "num_points: expected 1 or more validation points, got 0"),
        ("macro_f1.held_out", lambda a: a + 2, "macro_f1.held_out: expected shares from 0 to 1"),
        ("more", lambda a: np.zeros(2), "'more' does not belong here"),
        ("bins", None, "expected 'bins'"),
    ],
)
def test_a_strangers_file_is_checked(decider, tmp_path, name, change, message):
    path = tmp_path / DECIDER
    decider.save(path)
    with np.load(path) as saved:
        arrays = dict(saved)
    if change is None:
        del arrays[name]
    else:
        arrays[name] = change(arrays.get(name))
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=message):
        Decider.load(path, 12)


@pytest.mark.parametrize("damage", [lambda b: b"no archive", lambda b: b[:300], lambda b: b""])
def test_a_damaged_file_is_named_in_one_line(decider, tmp_path, damage):
    path = tmp_path / DECIDER
    decider.save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="decisions.npz") as error:
        Decider.load(path, 12)
    assert "\n" not in str(error.value)


def test_label_ids_of_another_model_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    probabilities = rng.random((400, 2)) * 0.98 + 0.01
    relevance = rng.random((400, 2)) < probabilities ** np.array([0.2, 6.0])
    found = fit_decider(
        sp.csr_matrix(probabilities), sp.csr_matrix(relevance), probabilities.ravel()
    )
    assert len(found.chosen["micro_f1"].thresholds.labels) == 2
    found.save(tmp_path / DECIDER)
    assert Decider.load(tmp_path / DECIDER, 2).calibration is None
    with pytest.raises(InputError, match=r"labels: expected ids in \[0, 1\), got 0 to 1"):
        Decider.load(tmp_path / DECIDER, 1)
