"""Every method trains, evaluates and answers on two processes as on one.

There are fewer test points than two blocks of both.
"""

import pytest

import eval as evaluation
import train
from engine.conformance.answers import COLLECTIVES, no_collectives
from engine.conformance.case import Case
from engine.conformance.learners import check_evaluation_changes_nothing, check_resuming
from engine.conformance.made import write_dataset
from engine.conformance.processes import check_processes
from predict import Predictor
from tests import commands
from tests.helpers import counted_encodings
from tests.settings import EACH, FIRST, LEARNERS, sections_of
from utils import distributed

EXACT = ("xr-linear", "overlap")  # no sum of a fit depends on the processes


@pytest.fixture(scope="module")
def few_points(tmp_path_factory):
    root = tmp_path_factory.mktemp("few")
    write_dataset(root / "tiny", test_points=3)
    return root


@pytest.mark.parametrize("name", [*EACH.values(), "elias-2-swa"])
def test_two_processes(name, few_points, tiny_encoder, tmp_path):
    sections = sections_of(name)
    tolerance = 0 if sections["method"]["name"] in EXACT else 1e-5
    case = Case(sections, few_points, tiny_encoder, tmp_path)
    check_processes(case, tolerance=tolerance, start=commands.launch)


@pytest.mark.parametrize("name", LEARNERS)
def test_evaluation_changes_nothing(name, tiny_root, tiny_encoder, tmp_path):
    case = Case(sections_of(name), tiny_root, tiny_encoder, tmp_path)
    check_evaluation_changes_nothing(case)


@pytest.mark.parametrize("name", LEARNERS)
def test_resuming(name, tiny_root, tiny_encoder, tmp_path):
    check_resuming(Case(sections_of(name), tiny_root, tiny_encoder, tmp_path))


def test_members_with_one_encoder_encode_a_text_once(make_config):
    """A dual encoder, classifiers on its frozen encoder and the memory of its embeddings."""
    classifiers = {"name": "xc", "tau": 0.05, "cluster_size": 4}
    members = {"dual": "stage:encoder", "rows": "stage:classifiers"}
    fusion = {"name": "fusion", "memory": "dual", "fuser": "linear", "members": members}
    stages = [
        FIRST,
        {"name": "classifiers", "method": classifiers},
        {"name": "fusion", "run": {"start_from": None}, "method": fusion},
    ]
    folder = train.fit(make_config(method={"name": "fusion"}, stages=stages))
    with counted_encodings() as calls:
        evaluation.evaluate(folder)
    assert sum(calls) == 20  # the report asks again: it finds them encoded
    predictor = Predictor(folder)
    with counted_encodings() as calls:
        predictor(["the linux tool", "", "glyph and letter"], k=20)
    assert sum(calls) == 3


@pytest.mark.parametrize("name", COLLECTIVES)
def test_a_collective_where_none_may_be_raises(name):
    with no_collectives(), pytest.raises(AssertionError, match=f"{name} is a collective"):
        getattr(distributed, name)(1)
