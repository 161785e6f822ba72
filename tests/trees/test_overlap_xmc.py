"""XR-Linear and overlap as methods of the trainer: runs, resume, features, bad input."""

import json
import shutil
import time

import numpy as np
import pytest
import scipy.sparse as sp

import eval as evaluation
import train
from engine.conformance.made import write_dataset
from predict import Predictor
from tests.conftest import with_values
from utils.arrays import map_arrays, save_arrays
from utils.config.config import DataConfig
from utils.data.dataset import load_dataset
from utils.linear import tree_training
from utils.linear.partition_tree import COMBINERS

TREE = {"name": "xr-linear", "max_leaf": 4, "splits": 2, "beam": 8}
OVERLAP = {**TREE, "name": "overlap"}


@pytest.fixture
def own_root(tmp_path):
    """A data set that a test may change."""
    write_dataset(tmp_path / "sets" / "tiny")
    return tmp_path / "sets"


def levels(folder):
    return sorted(path.name for path in (folder / "levels").iterdir())


def test_a_model_needs_neither_its_levels_nor_the_features_of_the_data(make_config, own_root):
    folder = train.fit(make_config(method=OVERLAP, data={"root": str(own_root)}))
    expected = Predictor(folder)(["linux and chess", "nothing known"], k=4)
    for path in (folder / "levels", own_root / "tiny" / "features"):
        shutil.rmtree(path)
    assert Predictor(folder)(["linux and chess", "nothing known"], k=4) == expected
    assert {label["text"] for label in expected[0][:2]} == {"kernel", "game"}


def test_a_single_text_takes_milliseconds(make_config):
    predictor = Predictor(train.fit(make_config(method=TREE)))
    predictor(["warm up"])
    times = []
    for _ in range(20):
        started = time.perf_counter()
        predictor(["linux and chess"])
        times.append(time.perf_counter() - started)
    assert np.median(times) < 0.05


def test_inner_products_and_copies(make_config, tmp_path):
    """Every label in its `copies` best clusters by the definition; the cost that is reported
    follows from them."""
    base = train.fit(make_config(method=TREE))
    folder = train.fit(
        make_config(method={**OVERLAP, "copies": 2}, run={"dir": str(tmp_path / "overlap")})
    )
    ranker = Predictor(folder).ranker
    tree = ranker.forest.trees[0]
    before = Predictor(base).ranker.forest.trees[0]
    members = np.zeros((20, len(tree.layers[-1].child_ptr) - 1))
    clusters = np.repeat(np.arange(members.shape[1]), np.diff(tree.layers[-1].child_ptr))
    np.add.at(members, (tree.node_labels, clusters), 1)
    data = load_dataset(ranker.config, None)
    split = data.splits["trn"]
    features = ranker.features.of(split.texts)
    nodes, _ = before.clusters(
        features, beam=8, combiner=COMBINERS["l3-hinge"], level=len(before.layers) - 2
    )
    counts, ranks = np.zeros((20, members.shape[1])), np.zeros((20, members.shape[1]))
    for point in range(len(split)):
        for label in split.relevance[[point]].indices:
            kept = nodes[point][nodes[point] >= 0]
            counts[label, kept] += 1
            ranks[label, kept] += 8 - np.arange(len(kept))  # decide between equal counts
    for label in range(20):
        best = np.lexsort((np.arange(members.shape[1]), -ranks[label], -counts[label]))[:2]
        assert set(np.flatnonzero(members[label])) == set(best)
    metrics = evaluation.evaluate(folder) and json.loads((folder / "tst_metrics.json").read_text())
    test = ranker.features.of(data.splits["tst"].texts)
    reached, _ = tree.clusters(
        test, beam=8, combiner=COMBINERS["l3-hinge"], level=len(tree.layers) - 2
    )
    sizes = np.append(members.sum(axis=0), 0)
    assert metrics["inner_products"] == pytest.approx(sizes[reached].sum(axis=1).mean(), abs=0.1)


@pytest.mark.parametrize("method", [{**TREE, "trees": 2}, {**OVERLAP, "rounds": 2}])
def test_resume_trains_only_the_levels_that_are_missing(make_config, method, monkeypatch, tmp_path):
    config = make_config(method=method)
    whole = train.fit(config)
    expected = {path.name: path.read_bytes() for path in (whole / "model").glob("*.npz")}
    second = with_values(config, run={"dir": str(tmp_path / "second")})
    fit_layer = tree_training.fit_layer
    done = []

    def counted(*arguments, **options):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return fit_layer(*arguments, **options)

    monkeypatch.setattr(tree_training, "fit_layer", counted)
    with pytest.raises(KeyboardInterrupt):
        train.fit(second)
    folder = tmp_path / "second"
    assert len([name for name in levels(folder) if "level" in name]) == 3
    assert not (folder / "model").exists()
    later = []
    monkeypatch.setattr(
        tree_training, "fit_layer", lambda *a, **o: later.append(1) or fit_layer(*a, **o)
    )
    train.fit(second, resume=True)
    assert {path.name: path.read_bytes() for path in (folder / "model").glob("*.npz")} == expected
    assert len(done) + len(later) == len([name for name in levels(folder) if "level" in name])
    train.fit(second, resume=True)  # finished: nothing is done
    assert len(done) + len(later) == len([name for name in levels(folder) if "level" in name])


def test_embeddings_of_a_run_beside_tfidf(make_config, tmp_path):
    encoder = train.fit(make_config(train={"epochs": 8}, run={"dir": str(tmp_path / "encoder")}))
    config = make_config(
        method={**TREE, "features": ["tfidf", str(encoder)]}, run={"dir": str(tmp_path / "tree")}
    )
    folder = train.fit(config)
    dim = json.loads((folder / "model" / "method.json").read_text())["columns"][1]
    assert dim == 16
    assert evaluation.evaluate(folder)["P@1"] > 40
    expected = Predictor(folder)(["linux and chess"], k=3)
    encoder.rename(tmp_path / "moved")  # the model has its own copy
    assert Predictor(folder)(["linux and chess"], k=3) == expected
    alone = train.fit(
        make_config(
            method={**TREE, "features": [str(tmp_path / "moved")]},
            run={"dir": str(tmp_path / "alone")},
        )
    )
    assert evaluation.evaluate(alone)["P@1"] > 20


def test_stages_give_the_tree_the_encoder_before_it(make_config):
    stages = (
        {"name": "encoder"},
        {"name": "tree", "method": {**TREE, "features": ["tfidf", "start"]}},
    )
    folder = train.fit(make_config(train={"epochs": 4}, stages=stages))
    assert json.loads((folder / "model" / "method.json").read_text())["columns"][1] == 16
    assert evaluation.evaluate(folder)["P@1"] > 40


def test_label_texts_join_the_centroids(make_config):
    folder = train.fit(make_config(method={**TREE, "label_embedding": "pifa+text"}))
    assert evaluation.evaluate(folder)["P@1"] > 40


def test_points_without_features_get_the_prior(make_config, own_root, tmp_path):
    texts = (own_root / "tiny" / "raw" / "tst_X.txt").read_text().splitlines()
    (own_root / "tiny" / "raw" / "tst_X.txt").write_text("\n".join(["unseen", *texts[1:]]) + "\n")
    folder = train.fit(make_config(method=TREE, data={"root": str(own_root)}))
    evaluation.evaluate(folder)
    assert json.loads((folder / "tst_metrics.json").read_text())["points_without_features"] == 1
    predictor = Predictor(folder)
    counts = load_dataset(predictor.config, None).seen_counts
    answer = predictor(["unseen"], k=3)[0]
    assert [label["label"] for label in answer] == np.argsort(-counts, kind="stable")[:3].tolist()
    assert answer[0]["score"] == pytest.approx(counts.max() / 48, abs=1e-6)


def test_labels_without_points_are_never_predicted(make_config, own_root):
    path = own_root / "tiny" / "Y.trn.npz"
    relevance = sp.load_npz(path).tolil()
    relevance[:, 7] = 0
    sp.save_npz(path, relevance.tocsr())
    folder = train.fit(make_config(method=OVERLAP, data={"root": str(own_root)}))
    evaluation.evaluate(folder)
    scores = sp.load_npz(folder / "tst_score_mat.npz")
    assert scores.shape == (20, 20)
    assert scores[:, [7]].nnz == 0
    answers = Predictor(folder)(["photo and linux"], k=20)[0]
    assert len(answers) == 19 and 7 not in {a["label"] for a in answers}


def test_duplicate_labels_score_alike(make_config, own_root):
    path = own_root / "tiny" / "Y.trn.npz"
    relevance = sp.load_npz(path).tolil()
    relevance[:, 3] = relevance[:, 5]
    sp.save_npz(path, relevance.tocsr())
    folder = train.fit(make_config(method={**TREE, "max_leaf": 20}, data={"root": str(own_root)}))
    scores = {a["label"]: a["score"] for a in Predictor(folder)(["sound"], k=20)[0]}
    assert scores[3] == pytest.approx(scores[5], abs=1e-3)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {**OVERLAP, "copies": 9},
            "method.copies is 9, but 20 labels with method.max_leaf 4 make only 8; lower",
        ),
        (
            {**TREE, "features": ["tfidf", "tfidf"]},
            "expected one source or more, none of them twice",
        ),
        (
            {**TREE, "features": ["start"]},
            "method.features names `start`, but there is no run.start_from",
        ),
        (
            {**TREE, "features": ["/nowhere"]},
            "method.features: expected tfidf, start, a run folder or a .npy file, got '/nowhere'",
        ),
        (
            {**TREE, "trees": 2, "combiner": "sum"},
            "scores of several trees are averaged, those of method.combiner sum",
        ),
        ({**TREE, "features": []}, "expected one source or more"),
    ],
)
def test_settings_that_cannot_be(make_config, method, message):
    config = make_config(method=method)
    with pytest.raises(ValueError, match=message):
        train.fit(config)
    assert not config.run_folder.exists()


def test_runs_that_have_no_encoder(make_config, tmp_path):
    tree = train.fit(make_config(method=TREE, run={"dir": str(tmp_path / "tree")}))
    with pytest.raises(ValueError, match="a run of method xr-linear has no encoder"):
        train.fit(make_config(method={**TREE, "features": ["tfidf", str(tree)]}))
    with pytest.raises(
        ValueError, match="takes from another run only its embeddings: name `start`"
    ):
        train.fit(
            make_config(method=TREE, run={"start_from": str(tree), "dir": str(tmp_path / "other")})
        )


def test_new_texts_need_the_vocabulary(make_config, own_root):
    config = make_config(method=TREE, data={"root": str(own_root)})
    for split, rows in (("trn", 60), ("tst", 20)):
        sp.save_npz(
            own_root / "tiny" / f"X.{split}.npz", sp.random(rows, 30, 0.3, "csr", np.float32)
        )
    folder = train.fit(config)
    evaluation.evaluate(folder)
    with pytest.raises(
        ValueError, match=r"Xf.txt: no such file; the data set's X.trn.npz came without its vocab"
    ):
        Predictor(folder)(["linux"])
    (folder / "model" / "Xf.txt").write_text("a\t1\n")
    with pytest.raises(ValueError, match=r"Xf.txt has 1 terms, expected 30, one for each column"):
        Predictor(folder)(["linux"])


def test_a_data_set_of_features_alone(make_config, own_root):
    from utils.features.files import find_features

    built = find_features(own_root / "tiny", DataConfig()).folder
    for path in built.iterdir():
        shutil.copyfile(path, own_root / "tiny" / path.name)
    for name in ("trn_X", "tst_X", "Y"):
        (own_root / "tiny" / "raw" / f"{name}.txt").unlink()
    folder = train.fit(make_config(method=TREE, data={"root": str(own_root)}))
    assert evaluation.evaluate(folder)["P@1"] > 40
    assert Predictor(folder)(["linux"], k=1)[0][0]["text"] == "label 7"
    (own_root / "tiny" / "X.tst.npz").unlink()
    with pytest.raises(ValueError, match=r"tst_X.txt: no such file"):
        evaluation.evaluate(folder)


def test_damaged_models_are_one_error(make_config):
    folder = train.fit(make_config(method=TREE))
    path = folder / "model" / "tree0.level1.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="the model cannot be loaded"):
        Predictor(folder)


def test_weights_that_point_outside_are_refused(make_config):
    """A stranger's model must not write outside of its memory: the kernels do not look at
    indices."""
    folder = train.fit(make_config(method=OVERLAP))
    for level, name, change in (
        (1, "children", 500_000_000),
        (0, "features", -3),
        (1, "ptr", 1 << 40),
        (0, "ptr", None),
        (1, "child_ptr", 9999),
    ):
        path = folder / "model" / f"tree0.level{level}.npz"
        whole = path.read_bytes()
        arrays = {key: array.copy() for key, array in map_arrays(path).items()}
        if change is None:
            del arrays[name]
        else:
            arrays[name][len(arrays[name]) // 2] = change
        path.unlink()  # a link to the level of the run
        save_arrays(path, arrays)
        with pytest.raises(
            ValueError, match=r"damaged or of another tree|expected 'ptr', got only"
        ):
            Predictor(folder)
        path.write_bytes(whole)
    assert Predictor(folder)(["linux"], k=1)


@pytest.mark.parametrize("combiner", ["l3-hinge", "sigmoid"])
def test_the_first_labels_of_a_forest_do_not_depend_on_k(make_config, combiner):
    predictor = Predictor(
        train.fit(make_config(method={**TREE, "trees": 3, "beam": 2, "combiner": combiner}))
    )
    texts = ["linux and chess", "photo", "the socket and the gcc tool", "arm and table"]
    for one, many in zip(predictor(texts, k=1), predictor(texts, k=15), strict=True):
        assert one == many[:1]


def test_trees_cannot_rank_new_labels(make_config):
    folder = train.fit(make_config(method=TREE))
    with pytest.raises(ValueError, match="method xr-linear knows labels by their training points"):
        Predictor(folder, labels=["zebra"])
