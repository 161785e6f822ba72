"""The method `fusion`: members, the fuser's stage, members trained again, one left out, and bad
input."""

import json
import shutil

import numpy as np
import pytest
import scipy.sparse as sp

import eval as evaluation
import train
from engine.conformance.answers import no_collectives
from engine.conformance.made import write_dataset
from models.evaluation import explain
from models.fusion.ranker import FusionScores
from predict import Predictor
from tests.helpers import counted_encodings, payload_of
from utils.config.config import ConfigError, to_yaml
from utils.data.dataset import load_dataset
from utils.data.texts import ListTexts
from utils.report.tables import read_run

DUAL = {"name": "dual", "method": {"name": "dexml"}, "train": {"epochs": 8}}
TREE = {
    "name": "tree",
    "run": {"start_from": None},
    "method": {"name": "xr-linear", "max_leaf": 4, "splits": 2},
}
METHOD = {"name": "fusion", "memory": "dual", "fuser": "linear"}
FUSION = {
    "name": "fusion",
    "run": {"start_from": None},
    "method": {**METHOD, "members": {"dual": "stage:dual", "tree": "stage:tree"}},
}


@pytest.fixture
def folder(make_config):
    return train.fit(make_config(method={"name": "fusion"}, stages=[DUAL, TREE, FUSION]))


def test_it_needs_no_other_run_explains_itself_and_can_do_without_a_member(folder, tmp_path):
    whole = evaluation.evaluate(folder)
    scores = sp.load_npz(folder / "tst_score_mat.npz")
    assert scores.data.min() >= 0
    page = payload_of(folder / "report.html")
    assert [stage["name"] for stage in page["stages"]] == ["dual", "tree", "fusion"]
    shutil.rmtree(folder / "stages")
    assert evaluation.evaluate(folder) == whole
    predictor = Predictor(folder)
    ranker = predictor.ranker
    split = load_dataset(predictor.config, None).splits["tst"]
    assert {n: c.shape[1] for n, c in ranker.clusters().items()} == {"tree, tree 1": 20}
    _, ids = ranker.open(split.texts).best(5)
    views = explain(ranker, split.texts, ids, 4, split.filters)
    assert [view.name for view in views] == ["dual", "tree", "memory"]
    assert all(
        view.ids.shape == (len(split), 4) and view.contributions.shape == (len(split), 5)
        for view in views
    )
    assert not np.allclose(views[0].contributions, views[1].contributions)
    assert page["members_fused"]["P@1"] == whole["P@1"]
    assert [member["name"] for member in page["members"]] == ["dual", "tree", "memory"]
    for member, view in zip(page["members"], views, strict=True):
        truth = split.relevance.toarray()
        hits = [label >= 0 and truth[i, label] > 0 for i, label in enumerate(view.ids[:, 0])]
        assert member["metrics"]["P@1"] == pytest.approx(100 * np.mean(hits))
        assert all(0 <= member["metrics"][name] <= 100 for name in ("P@3", "PSP@5", "R@10"))
    assert not any(
        split.filters[i, label]
        for view in views
        for i, row in enumerate(view.ids)
        for label in row[row >= 0]
    )
    left_out = {}
    for name in ("dual", "tree", "memory"):
        left_out[name] = evaluation.evaluate(folder, overrides=["--eval.without", f"[{name}]"])[
            "nDCG@3"
        ]
        assert json.loads((folder / "tst_metrics.json").read_text())["without"] == [name]
        with pytest.raises(
            ValueError, match=f"tst_metrics.json: measured without {name}; measure the whole with"
        ):
            read_run(folder, "tst")
    assert len({*left_out.values(), whole["nDCG@3"]}) > 2
    with pytest.raises(
        ValueError, match=r"eval.without is \['nobody'\]: expected exactly one of the members"
    ):
        evaluation.evaluate(folder, overrides=["--eval.without", "[nobody]"])
    assert predictor(["the linux tool", ""], k=3)[0][0]["text"] == "kernel"
    told = json.loads((folder / "model" / "fusion.json").read_text())
    assert {"dual", "tree", "memory", "fused, cross-fitted", "reliability"} == set(told)


def test_members_trained_again_on_all_points_take_the_fuser(make_config):
    whole = {"val_fraction": 0}
    folder = train.fit(
        make_config(
            method={"name": "fusion"},
            stages=[
                DUAL,
                TREE,
                {**FUSION, "name": "fuser"},
                {
                    **DUAL,
                    "name": "dual-all",
                    "data": whole,
                    "run": {"start_from": None},
                    "train": {"epochs": 8, "stop_epoch": "best:dual"},
                },
                {**TREE, "name": "tree-all", "data": whole},
                {
                    "name": "fusion",
                    "data": whole,
                    "run": {"start_from": "stage:fuser"},
                    "method": {
                        **METHOD,
                        "members": {"dual": "stage:dual-all", "tree": "stage:tree-all"},
                    },
                },
            ],
        )
    )
    best = json.loads((folder / "stages" / "dual" / "finished").read_text())["best_epoch"]
    assert json.loads((folder / "stages" / "dual-all" / "finished").read_text())["epochs"] == best
    one, two = (np.load(f / "model" / "fuser.npz") for f in (folder, folder / "stages" / "fuser"))
    assert all(
        np.array_equal(one[name], two[name]) for name in {*one.files} - {"log_counts", "boost"}
    )
    relevant = sp.load_npz(make_config().dataset_folder / "Y.trn.npz") != 0
    held_out = np.load(folder / "stages" / "fuser" / "val_rows.npy")
    for fuser, rows in ((one, np.arange(60)), (two, np.setdiff1d(np.arange(60), held_out))):
        np.testing.assert_allclose(
            np.expm1(fuser["log_counts"]), np.asarray(relevant[rows].sum(0)).ravel(), atol=1e-4
        )
    assert len(np.load(folder / "model" / "memory" / "keys.npy")) == 60  # all training points
    assert evaluation.evaluate(folder)["P@1"] > 40


def test_members_may_be_configs_that_are_trained_when_missing(make_config, tmp_path):
    for name, method in (("dual", {"name": "dexml"}), ("tree", {**TREE["method"]})):
        (tmp_path / f"{name}.yaml").write_text(to_yaml(make_config(method=method)))
    config = make_config(
        method={
            "name": "fusion",
            "members": {name: str(tmp_path / f"{name}.yaml") for name in ("dual", "tree")},
        }
    )
    folder = train.fit(config)
    assert evaluation.evaluate(folder)["P@1"] > 40
    written = (folder / "stages" / "tree" / "finished").stat().st_mtime_ns
    train.fit(config, resume=True)
    assert (folder / "stages" / "tree" / "finished").stat().st_mtime_ns == written


@pytest.mark.parametrize("target", ["PSP@5", "nDCG@5"])
def test_the_tail_is_weighed_by_the_target(make_config, target):
    stages = [DUAL, TREE, {**FUSION, "method": {**FUSION["method"], "target": target}}]
    folder = train.fit(make_config(method={"name": "fusion"}, stages=stages))
    fuser = np.load(folder / "model" / "fuser.npz")
    log = (folder / "train.log").read_text().splitlines()
    lines = [line.split() for line in log if f"cross-fitted {target}" in line]
    tried = {float(words[words.index("tail") + 1].rstrip(":")): float(words[-1]) for words in lines}
    assert len(tried) == 8 and tried[fuser["tail"].item()] == max(tried.values())
    assert (fuser["boost"] > 1).all() == (fuser["tail"] > 0)
    evaluation.evaluate(folder)
    scores = sp.load_npz(folder / "tst_score_mat.npz")
    rows = (scores.data[None], scores.indices[None], scores.data[None])
    probabilities = Predictor(folder).ranker.probabilities(*rows)
    assert 0 <= probabilities.min() <= probabilities.max() <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": {**METHOD, "members": {}}}, "method.members is empty: name the runs"),
        (
            {"method": {**METHOD, "members": {"a/b": "stage:dual"}}},
            "'a/b' cannot be a member's name",
        ),
        (
            {"method": {**METHOD, "members": {"memory": "stage:dual"}}},
            "'memory' cannot be a member's name",
        ),
        (
            {"method": {**METHOD, "memory": "x", "members": {"dual": "stage:dual"}}},
            "method.memory is 'x', expected one of",
        ),
        (
            {"method": {**METHOD, "members": {"dual": "stage:later"}}},
            "there is no earlier stage later; earlier .*: dual",
        ),
        ({"data": {"val_fraction": 0}}, "fitted on validation points: expected at least 2"),
        (
            {"data": {"val_fraction": 0.1}},
            "dual: another validation split than data.val_fraction 0.1, data.val_max",
        ),
        (
            {"run": {"start_from": "stage:dual"}},
            "expected a fusion of dual, memory over dual, whose .* got a dexml run",
        ),
        (
            {"method": {**METHOD, "members": {"..": "stage:dual"}}},
            "'..' cannot be a member's name",
        ),
        (
            {"eval": {"index": "hnsw"}},
            "eval.index is 'hnsw': a fusion asks its members for exact scores",
        ),
        ({"data": {"name": "other"}}, "dual: a run on tiny, this one is on other"),
    ],
)
def test_bad_members_are_one_clear_error(make_config, tmp_path, tiny_root, change, message):
    root = tmp_path / "sets"
    shutil.copytree(tiny_root / "tiny", root / "tiny")
    write_dataset(root / "other", points=40)
    stage = {**FUSION, "method": {**METHOD, "members": {"dual": "stage:dual"}}, **change}
    config = make_config(
        method={"name": "fusion"},
        data={"root": str(root)},
        stages=[{**DUAL, "train": {"epochs": 1}}, stage],
    )
    with pytest.raises(ConfigError, match=message):
        train.fit(config)
    assert not (config.run_folder / "model").exists()


def test_members_that_cannot_be_asked_are_refused(make_config, folder, tiny_root, tmp_path):
    members = {name: str(folder / "stages" / name) for name in ("dual", "tree")}

    def refused(match, **sections):
        config = make_config(
            method={"name": "fusion", "members": members, **sections.get("method", {})},
            run={"dir": str(tmp_path / "x"), **sections.get("run", {})},
        )
        with pytest.raises(ConfigError, match=match):
            train.fit(config)
        assert not (tmp_path / "x").exists()

    refused(
        "method.memory is 'tree', a xr-linear run, which has no encoder", method={"memory": "tree"}
    )
    refused(
        r"whole \(.*\) is a fusion itself; name its members instead",
        method={"members": {"whole": str(folder)}},
    )
    refused(
        "expected a fusion of dual, tree, whose fuser is taken, got a fusion of dual, tree, "
        "memory over dual",
        run={"start_from": str(folder)},
    )
    other = tmp_path / "model-of-other"
    shutil.copytree(folder, other)
    told = json.loads((other / "model" / "method.json").read_text())
    (other / "model" / "method.json").write_text(json.dumps({**told, "data_hash": "another"}))
    refused(
        "over dual on data .*got a fusion of dual, tree, memory over dual on data another",
        method={"memory": "dual"},
        run={"start_from": str(other)},
    )


def test_a_score_does_not_depend_on_how_many_are_asked_for(make_config):
    few = {**FUSION, "method": {**FUSION["method"], "candidates": 3}}
    predictor = Predictor(
        train.fit(make_config(method={"name": "fusion"}, stages=[DUAL, TREE, few]))
    )
    for text in ("the linux tool", "glyph and letter"):
        short, long = predictor([text], k=1)[0], predictor([text], k=20)[0]
        assert short[0] == long[0]
        assert 3 <= len(long) <= 9  # the union of what three members proposed


def test_a_fuser_of_other_labels_is_refused(folder):
    path = folder / "model" / "without-tree.npz"
    arrays = dict(np.load(path))
    np.savez(
        path, **{**arrays, "log_counts": arrays["log_counts"][:1], "boost": arrays["boost"][:1]}
    )
    with pytest.raises(
        ValueError, match=r"without-tree.npz: expected members dual, memory and 20 labels.* and 1"
    ):
        evaluation.evaluate(folder)


def test_a_fuser_is_not_taken_for_members_of_another_method(make_config):
    """As by an override of a stage that `refit: true` makes; before anything is trained."""
    members = {"dual": "stage:other", "tree": "stage:tree"}
    stages = [
        DUAL,
        TREE,
        {**FUSION, "name": "fuser"},
        {**DUAL, "name": "other", "run": {"start_from": None}, "method": {"name": "ova"}},
        {
            "name": "fusion",
            "run": {"start_from": "stage:fuser"},
            "method": {**METHOD, "members": members},
        },
    ]
    config = make_config(method={"name": "fusion"}, stages=stages)
    message = "fitted on a dexml run as member dual, here dual is a ova run"
    with pytest.raises(ConfigError, match=message):
        train.fit(config)
    assert not config.run_folder.exists()


def test_stages_of_a_members_config_keep_what_they_start_from(make_config, tmp_path):
    """A tree starts from nothing though an encoder stands before it; names inside the config are
    found."""
    stages = [
        {**DUAL, "train": {"epochs": 2}},
        {
            "name": "again",
            "run": {"start_from": "stage:dual"},
            "method": {"name": "dexml"},
            "train": {"epochs": 1},
        },
        {**TREE, "name": "last"},
    ]
    (tmp_path / "two.yaml").write_text(
        to_yaml(make_config(method={"name": "dexml"}, stages=stages))
    )
    folder = train.fit(
        make_config(method={"name": "fusion", "members": {"two": str(tmp_path / "two.yaml")}})
    )
    assert sorted(p.name for p in (folder / "stages").iterdir()) == ["two", "two-again", "two-dual"]
    assert "start_from: null" in (folder / "stages" / "two" / "config.yaml").read_text()
    assert "stages/two-dual" in (folder / "stages" / "two-again" / "config.yaml").read_text()


@pytest.mark.parametrize("right", [True, False])
def test_a_fusion_of_candidates_that_are_all_alike_says_so(make_config, tmp_path, right):
    """Every label is right for every validation point, or a filter pair leaves wrong ones alone."""
    root = tmp_path / "sets"
    folder = write_dataset(root / "alike", points=40, labels=3, filters=False)
    if right:
        sp.save_npz(folder / "Y.trn.npz", sp.csr_matrix(np.ones((40, 3), np.float32)))
    else:
        matrix = sp.csr_matrix(sp.load_npz(folder / "Y.trn.npz"))
        pairs = zip(*matrix.nonzero(), strict=True)
        (folder / "filter_labels_train.txt").write_text(
            "".join(f"{row} {label}\n" for row, label in pairs)
        )
    run = train.fit(
        make_config(
            data={"root": str(root), "name": "alike"},
            method={"name": "fusion"},
            stages=[DUAL, TREE, FUSION],
        )
    )
    lines = [
        line
        for line in (run / "train.log").read_text().splitlines()
        if "candidates of the validation" in line
    ]
    assert len(lines) == 1 and f" are {'right' if right else 'wrong'}: how to weigh" in lines[0]
    scores = [
        entry["score"] for row in Predictor(run)(["the linux tool", "vim"], k=3) for entry in row
    ]
    assert min(scores) > 0.9 if right else max(scores) < 0.1


@pytest.fixture
def twins(make_config, tmp_path):
    """A fusion of a dual encoder, its copy elsewhere, one of other weights, and a memory."""
    dual = train.fit(make_config(run={"dir": str(tmp_path / "dual")}, train={"epochs": 2}))
    other = train.fit(
        make_config(run={"dir": str(tmp_path / "other"), "seed": 1}, train={"epochs": 2})
    )
    shutil.copytree(dual, tmp_path / "copy")
    members = {"eval": str(dual), "copy": str(tmp_path / "copy"), "other": str(other)}
    method = {"name": "fusion", "memory": "copy", "fuser": "linear", "members": members}
    return train.fit(make_config(run={"dir": str(tmp_path / "fusion")}, method=method))


def test_a_text_is_encoded_once_by_each_distinct_encoder(twins):
    predictor = Predictor(twins)
    with counted_encodings() as new:
        predictor(["the linux tool", "", "glyph and letter"], k=20)
    assert sum(new) == 2 * 3
    with counted_encodings() as of_file:
        evaluation.evaluate(twins)  # its report asks again
    assert sum(of_file) == 2 * 20
    members = predictor.ranker.members.rankers
    assert members["eval"].reader.key == members["copy"].reader.key != members["other"].reader.key


def test_members_of_equal_encoders_say_the_same(twins):
    texts = ListTexts(["the linux tool", "glyph and letter"])
    ranker = Predictor(twins).ranker
    one, copy, other, memory = ranker.members.open(texts, ranker.members.names)
    asked = np.array([[3, 5], [1, -1]])
    known = asked >= 0
    assert (one.of(asked)[known] == copy.of(asked)[known]).all()
    assert (one.of(asked)[known] != other.of(asked)[known]).all()
    assert (memory.of(asked) >= 0).all()


def test_no_texts_have_no_scores(folder):
    ranker = Predictor(folder).ranker
    for none in (ListTexts([]), load_dataset(ranker.config, None).splits["tst"].texts[:0]):
        scores = ranker.open(none)
        values, ids = scores.best(4)
        assert values.shape == ids.shape == (0, 4)
        assert scores.of(np.empty((0, 2), np.int64)).shape == (0, 2)
    assert Predictor(folder)([], k=3) == []


class Fixed:
    """Scores of labels, the same for every text; it proposes those above 0."""

    def __init__(self, scores):
        self.scores = np.array(scores, np.float32)

    def best(self, k):
        order = np.argsort(-self.scores, kind="stable")[:k]
        ids = np.where(self.scores[order] > 0, order, -1)
        return self.scores[None, order], ids[None]

    def of(self, labels):
        return self.scores[labels]


class Sum:
    """A fuser that adds up what the members say."""

    members = ("one", "two")
    log_counts = np.zeros(6)

    def __call__(self, candidates):
        return np.where(candidates.known, candidates.scores.sum(2), -np.inf).astype(np.float32)


def test_candidates_are_ranked_and_others_have_the_lowest_score_of_them():
    opened = [Fixed([0.5, 0, 0.25, 0, 0, 0.125]), Fixed([0, 0.5, 0.25, 0, 0, 0])]
    scores = FusionScores(opened, Sum(), proposed=2)  # 0 and 2 of one; 1 and 2 of two
    with no_collectives():
        values, ids = scores.best(5)
    assert ids.tolist() == [[0, 1, 2, -1, -1]]  # equal ones by lower id
    assert values.tolist() == [[0.5, 0.5, 0.5, -np.inf, -np.inf]]
    more = FusionScores(opened, Sum(), proposed=6)
    assert more.best(4)[1].tolist() == [[0, 1, 2, 5]]
    assert more.of(np.array([[5, 3, 0, 4]])).tolist() == [[0.125, 0.125, 0.5, 0.125]]
