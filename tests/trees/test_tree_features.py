"""What runs read: features of the texts as they are, of a model's own vocabulary, of a published
layout, of arrays."""

import json
import logging

import numpy as np
import pytest
import scipy.sparse as sp

import eval as evaluation
import train
from engine import trainer
from engine.conformance.made import write_dataset
from models.elias.first_graph import cluster
from models.trees.dense_features import array_pair
from predict import Predictor
from tests.conftest import with_values
from utils.data.dataset import load_dataset
from utils.data.held_out import validation_rows
from utils.errors import InputError

TREE = {"name": "xr-linear", "max_leaf": 4, "splits": 2, "beam": 8}


@pytest.fixture
def own_root(tmp_path):
    """A data set that a test may change."""
    write_dataset(tmp_path / "sets" / "tiny")
    return tmp_path / "sets"


def write_texts(folder, texts, copies=3):
    """A data set whose label l has the text texts[l], its training points being copies of it."""
    (folder / "raw").mkdir(parents=True, exist_ok=True)
    for name, lines in (("Y", texts), ("trn_X", texts * copies), ("tst_X", texts)):
        (folder / "raw" / f"{name}.txt").write_text(
            "".join(f"{line}\n" for line in lines), encoding="utf-8"
        )
    one = sp.identity(len(texts), np.float32, format="csr")
    sp.save_npz(folder / "Y.trn.npz", sp.vstack([one] * copies, format="csr"))
    sp.save_npz(folder / "Y.tst.npz", one)
    return folder


def tree(make_config, root, name="tiny", **sections):
    data = {"root": str(root), "name": name, "val_fraction": 0} | sections.pop("data", {})
    return make_config(method={**TREE, **sections.pop("method", {})}, data=data, **sections)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def replace(root, old, new):
    for split in ("trn", "tst"):
        path = root / "tiny" / "raw" / f"{split}_X.txt"
        path.write_text(path.read_text().replace(old, new))


def test_texts_that_were_edited_are_read_anew_and_an_older_run_keeps_its_own(make_config, tmp_path):
    folder = write_texts(tmp_path / "tiny", ["cat meow", "dog bark"])
    before = contents(folder)
    first = train.fit(tree(make_config, tmp_path))
    write_texts(folder, ["wolf howl", "cow moo"])
    second = train.fit(tree(make_config, tmp_path, run={"dir": str(tmp_path / "second")}))
    answer = Predictor(second)(["wolf howl"], k=2)[0]
    assert answer[0]["label"] == 0 and answer[0]["score"] > 0.99
    assert contents(folder) == before  # no X, and Y as it was
    # other labels too: the older run answers with its own, and is not evaluated on them
    answer = Predictor(first)(["cat meow"], k=2)[0]
    assert answer[0]["text"] == "cat meow" and answer[0]["score"] > 0.99
    with pytest.raises(InputError, match="Y.txt is not what .* was trained with"):
        evaluation.evaluate(first)


def test_an_older_run_reads_edited_texts_by_its_own_vocabulary(make_config, own_root):
    folder = train.fit(tree(make_config, own_root))
    replace(own_root, "linux", "wolf")
    train.fit(tree(make_config, own_root, run={"dir": str(own_root / "second")}))
    evaluation.evaluate(folder)
    scores = sp.load_npz(folder / "tst_score_mat.npz").toarray()
    texts = (own_root / "tiny" / "raw" / "tst_X.txt").read_text().splitlines()
    filters = (own_root / "tiny" / "filter_labels_test.txt").read_text().splitlines()
    for row, answer in enumerate(Predictor(folder)(texts, k=5)):
        for label in answer:
            if f"{row} {label['label']}" not in filters:
                assert scores[row, label["label"]] == pytest.approx(label["score"], abs=1e-5)


@pytest.mark.parametrize("older", [False, True])
def test_a_models_vocabulary_that_is_gone_is_named_not_the_data_set(make_config, own_root, older):
    folder = train.fit(tree(make_config, own_root))
    own = folder / "model" / "Xf.txt"
    own.unlink()
    if older:  # which does not say that it has one
        told = folder / "model" / "method.json"
        told.write_text(told.read_text().replace('"vocabulary": true', '"any": 0'))
    for ask in (lambda: Predictor(folder)(["linux"]), lambda: evaluation.evaluate(folder)):
        with pytest.raises(InputError, match=f"{own}: no such file"):
            ask()


def test_a_models_vocabulary_of_other_terms_is_named_not_the_data_set(make_config, own_root):
    folder = train.fit(tree(make_config, own_root))
    own = folder / "model" / "Xf.txt"
    lines = own.read_text().splitlines(keepends=True)
    own.write_text("".join(lines[:-1]))
    for ask in (lambda: Predictor(folder)(["linux"]), lambda: evaluation.evaluate(folder)):
        with pytest.raises(InputError, match=f"^{own} has {len(lines) - 2} terms"):
            ask()


def test_levels_of_other_features_are_not_gone_on_with(make_config, own_root, monkeypatch):
    config = tree(make_config, own_root)
    monkeypatch.setattr(trainer, "keep_best", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train.fit(config)
    monkeypatch.undo()
    replace(own_root, "linux", "wolf")
    with pytest.raises(
        InputError, match="levels: its trees were trained on other features .*--overwrite"
    ):
        train.fit(config, resume=True)
    replace(own_root, "wolf", "linux")
    assert evaluation.evaluate(train.fit(config, resume=True))["P@1"] > 40


def test_groups_of_texts_as_they_are_now_and_a_run_keeps_its_validation_points(
    make_config, own_root
):
    config = tree(make_config, own_root, data={"val_fraction": 0.3, "val_group_size": 5})
    folder = train.fit(config)
    held_out = np.load(folder / "val_rows.npy")
    whole = evaluation.evaluate(folder, "val")
    path = own_root / "tiny" / "raw" / "trn_X.txt"
    relevance = sp.load_npz(own_root / "tiny" / "Y.trn.npz")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[::-1]) + "\n")
    assert not np.array_equal(validation_rows(relevance, config.data, own_root / "tiny"), held_out)
    path.write_text("\n".join(lines) + "\n")
    (own_root / "tiny" / "X.trn.npz").write_bytes(b"what a run that is finished does not need")
    assert evaluation.evaluate(folder, "val") == whole


def test_the_published_layout_of_elias_is_only_read(make_config, own_root):
    folder = own_root / "tiny"
    sp.save_npz(folder / "X.trn.npz", sp.random(60, 70, 0.2, "csr", np.float32, random_state=0))
    before = contents(folder)
    config = make_config(data={"root": str(own_root)}, method={"name": "elias-1"})
    data = load_dataset(config, None)
    graph = cluster(data, config.method)
    assert contents(folder) == before and not (folder / "features").exists()
    features = sp.load_npz(folder / "X.trn.npz")[data.splits["trn"].rows]
    assert graph.num_labels == 20 and features.shape[1] == 70
    config = tree(make_config, own_root, run={"dir": str(own_root / "run")})
    with pytest.raises(
        InputError, match=r"X.tst.npz: no such file, but X.trn.npz is there.*--data.features texts"
    ):
        train.fit(config)
    stages = [
        {"name": "encoder"},
        {"name": "tree", "method": {**TREE, "features": ["tfidf", "start"]}},
    ]
    # before the first one
    with pytest.raises(InputError, match=r"stage 'tree': .*X.tst.npz: no such file"):
        train.fit(make_config(data={"root": str(own_root)}, stages=stages))
    assert not config.run_folder.exists()
    run = train.fit(with_values(config, data={"features": "texts"}))
    assert evaluation.evaluate(run)["P@1"] > 40
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("texts", "characters"),
    [
        (["बिल्ली म्याऊँ", "कुत्ता भौंक", "बकरी मिमिया", "गधा रेंक"], False),
        (["పిల్లి మ్యావ్", "కుక్క మొరుగు", "గేదె", "కోడి కూత"], False),
        (["বিড়াল মিউ", "কুকুর ঘেউ", "গরু হাম্বা"], False),
        (["كَلْبٌ", "قِطَّةٌ", "كَلَبٌ"], False),
        (["c", "c++", "c#", "objective-c", "f#", "f"], False),
        (["😀", "🐱", "👩‍👩‍👧", "👩"], False),
        (["我们喜欢猫", "公园遛狗", "他们养牛"], True),
        (["แมวร้องเหมียว", "หมาเห่าดัง", "วัวกินหญ้า"], True),
        (["猫が鳴く", "犬が吠える", "牛が食べる"], True),
    ],
)
def test_labels_of_all_scripts_are_told_apart(make_config, tmp_path, texts, characters, caplog):
    caplog.set_level(logging.INFO)
    write_texts(tmp_path / "tiny", texts)
    folder = train.fit(tree(make_config, tmp_path))
    assert evaluation.evaluate(folder)["P@1"] == 100
    assert ("character n-grams" in caplog.text) == characters
    if characters:  # a part of what was learned, as no word stands alone
        answers = Predictor(folder)([text[:-1] for text in texts], k=1)
        assert [answer[0]["label"] for answer in answers] == list(range(len(texts)))


# -------------------------------- dense arrays


@pytest.fixture
def arrays(own_root):
    """X.{trn,tst}.npy beside the data: for each point the sum of its labels' random vectors."""
    vectors = np.random.default_rng(0).normal(size=(20, 24)).astype(np.float32)
    for split in ("trn", "tst"):
        relevance = sp.load_npz(own_root / "tiny" / f"Y.{split}.npz")
        np.save(
            own_root / "tiny" / f"X.{split}.npy",
            relevance.astype(bool).astype(np.float32) @ vectors,
        )
    return own_root / "tiny"


def test_arrays_are_features(make_config, arrays, tmp_path):
    config = tree(make_config, arrays.parent, method={"features": ["X.trn.npy"]})
    folder = train.fit(config)
    assert evaluation.evaluate(folder)["P@1"] > 80
    own = np.load(arrays / "X.tst.npy")
    features = Predictor(folder).ranker.features
    texts = load_dataset(config, None).splits["tst"].texts
    dense = features.of(texts[np.array([3, 7])]).dense
    np.testing.assert_allclose(
        dense, own[[3, 7]] / np.linalg.norm(own[[3, 7]], axis=1, keepdims=True), rtol=1e-5
    )
    with pytest.raises(
        InputError, match=r"reads precomputed features, X.trn.npy, which new texts do not have"
    ):
        Predictor(folder)(["linux"])
    told = folder / "model" / "arrays0.json"
    as_saved = told.read_text()
    for damaged in ("{}", '{"name": 3, "columns": 24}', '{"name": "X.trn.npy", "columns": null}'):
        told.write_text(damaged)
        with pytest.raises(
            InputError, match=r"arrays0\.json: (expected a key 'name'|name|columns)"
        ):
            Predictor(folder)
    told.write_text(as_saved)
    facts = folder / "model" / "method.json"
    as_saved = facts.read_text()
    for key, damaged in (("columns", []), ("columns", [1, 2, 3]), ("trees", [])):
        facts.write_text(json.dumps(json.loads(as_saved) | {key: damaged}))
        with pytest.raises(InputError, match=rf"method\.json: {key}: expected"):
            Predictor(folder)
    facts.write_text(as_saved)
    both = train.fit(
        with_values(
            config, method={"features": ["tfidf", str(arrays)]}, run={"dir": str(tmp_path / "both")}
        )
    )
    assert evaluation.evaluate(both)["P@1"] > 80
    for split in ("trn", "tst"):  # nothing else is needed
        (arrays / "raw" / f"{split}_X.txt").unlink()
    assert evaluation.evaluate(folder)["P@1"] > 80
    (arrays / "X.tst.npy").unlink()
    with pytest.raises(InputError, match=r"X.tst.npy does not exist; expected two .npy files"):
        evaluation.evaluate(folder)


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_arrays_as_members_of_a_fusion(make_config, arrays, kind):
    for split in ("trn", "tst"):
        np.save(arrays / f"X.{split}.npy", np.load(arrays / f"X.{split}.npy").astype(kind))
    stages = [
        {"name": "words", "method": TREE},
        {"name": "dense", "method": {**TREE, "features": ["X.npy"]}},
        {
            "name": "fusion",
            "method": {
                "name": "fusion",
                "fuser": "linear",
                "members": {"words": "stage:words", "dense": "stage:dense"},
            },
        },
    ]
    folder = train.fit(
        make_config(
            method={"name": "fusion"},
            data={"root": str(arrays.parent)},
            stages=[{**stage, "run": {"start_from": None}} for stage in stages],
        )
    )
    assert evaluation.evaluate(folder)["P@1"] > 80


@pytest.mark.parametrize(
    ("name", "trn", "tst"),
    [
        ("X.trn.npy", "X.trn.npy", "X.tst.npy"),
        ("X.tst.npy", "X.trn.npy", "X.tst.npy"),
        ("X.npy", "X.trn.npy", "X.tst.npy"),
        ("X.{trn,tst}.npy", "X.trn.npy", "X.tst.npy"),
        ("X.trn.finetune.xlnet.npy", "X.trn.finetune.xlnet.npy", "X.tst.finetune.xlnet.npy"),
        ("trn_embeddings.npy", "trn_embeddings.npy", "tst_embeddings.npy"),
        ("train-bert.npy", "train-bert.npy", "test-bert.npy"),
        ("trained.npy", "trained.trn.npy", "trained.tst.npy"),
    ],
)
def test_names_of_pairs(tmp_path, name, trn, tst):
    assert {split: path.name for split, path in array_pair(name, tmp_path).items()} == {
        "trn": trn,
        "tst": tst,
    }
    (tmp_path / "deep").mkdir()
    for file in (trn, tst):
        (tmp_path / "deep" / file).touch()
    expected = {"trn": tmp_path / "deep" / trn, "tst": tmp_path / "deep" / tst}
    assert array_pair(f"deep/{name}", tmp_path) == expected
    assert array_pair("deep", tmp_path) == expected
    (tmp_path / "deep" / "Other.trn.npy").touch()
    with pytest.raises(
        InputError,
        match="expected one pair, such as X.trn.npy and X.tst.npy; name one of its files",
    ):
        array_pair("deep", tmp_path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((19, 24), np.float32), r"X.tst.npy has 19 rows but raw/tst_X.txt has 20 lines"),
        (
            np.ones((20, 23), np.float32),
            r"X.npy: the training points have 24 columns, the test points 23",
        ),
        (np.ones(20, np.float32), r"X.tst.npy: expected 2 dimensions, got shape \(20,\)"),
        (
            np.ones((20, 24), np.int64),
            r"X.tst.npy: expected real numbers, got values of type int64",
        ),
        (
            np.ones((20, 24), complex),
            r"X.tst.npy: expected real numbers, got values of type complex128",
        ),
        (
            np.full((20, 24), np.nan, np.float16),
            r"X.tst.npy: row 0: a feature is NaN, infinite or beyond 1e\+15",
        ),
        (
            np.full((20, 24), -1e300),
            r"X.tst.npy: row 0: a feature is NaN, infinite or beyond 1e\+15",
        ),
        (
            np.full((20, 24), 1e20, np.float32),
            r"X.tst.npy: row 0: a feature is NaN, infinite or beyond 1e\+15",
        ),
        (b"\x93NUMPY", r"X.tst.npy: not a .npy array"),
        (None, r"X.tst.npy does not exist"),
    ],
)
def test_arrays_that_cannot_be(make_config, arrays, array, message):
    path = arrays / "X.tst.npy"
    path.unlink()
    if isinstance(array, bytes):
        path.write_bytes(array)
    elif array is not None:
        np.save(path, array)
    config = tree(make_config, arrays.parent, method={"features": ["X.npy"]})
    with pytest.raises(InputError, match=message):
        train.fit(config)
    assert not config.run_folder.exists()


def test_a_run_of_given_features_needs_them(make_config, own_root):
    folder = own_root / "tiny"
    for split, rows in (("trn", 60), ("tst", 20)):
        sp.save_npz(
            folder / f"X.{split}.npz", sp.random(rows, 30, 0.3, "csr", np.float32, random_state=0)
        )
    run = train.fit(tree(make_config, own_root))
    evaluation.evaluate(run)
    for split in ("trn", "tst"):
        (folder / f"X.{split}.npz").unlink()
    with pytest.raises(
        InputError,
        match=r"X.tst.npz: no such file; expected the features that came with the data set",
    ):
        evaluation.evaluate(run)


def test_levels_of_other_arrays_are_not_gone_on_with(make_config, arrays, monkeypatch):
    config = tree(make_config, arrays.parent, method={"features": ["tfidf", "X.npy"]})
    monkeypatch.setattr(trainer, "keep_best", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train.fit(config)
    monkeypatch.undo()
    np.save(arrays / "X.trn.npy", np.load(arrays / "X.trn.npy")[::-1])
    with pytest.raises(InputError, match="its trees were trained on other features"):
        train.fit(config, resume=True)
