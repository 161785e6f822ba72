"""ELIAS's graphs made by a step of their own: by whose model, who takes them, who refuses them."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

import elias_utils
import train
from engine.conformance.made import write_dataset
from engine.elias_steps import gen_approx_A, gen_cluster_A
from models.elias.graph import Graph
from tests.conftest import with_values
from utils.config.config import ConfigError, build_config, to_mapping, to_yaml
from utils.config.legacy_yaml import load_any_config
from utils.errors import InputError
from utils.run.finding import find_run

STAGE1 = {"name": "elias-1", "max_leaf": 5, "tau": 0.1, "init_bias": -3.0}
STAGE2 = {**STAGE1, "name": "elias-2", "graph": "approx"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_encoder):
    """A finished stage 1 in a folder of its own with its data set; tests work on copies."""
    root = tmp_path_factory.mktemp("trained")
    write_dataset(root / "sets" / "set", points=80, labels=24, seed=3)
    train.fit(
        build_config(
            {
                "data": {
                    "root": str(root / "sets"),
                    "name": "set",
                    "max_len": 16,
                    "val_fraction": 0.2,
                },
                "encoder": {"name": "bag", "init": tiny_encoder},
                "method": STAGE1,
                "loss": {"name": "bce"},
                "optim": {"lr": 0.05},
                "train": {"epochs": 3, "batch_size": 16},
                "run": {"dir": str(root / "one"), "tensorboard": False},
            },
            {},
        )
    )
    return root


@pytest.fixture
def place(trained, tmp_path):
    """A copy of `trained`, of which a test may change what it likes."""
    return Path(shutil.copytree(trained, tmp_path / "place"))


def settings(place, **sections):
    """The config of stage 1 in `place`, with some keys changed."""
    config = find_run(place / "one")[1]
    sections["data"] = {"root": str(place / "sets"), **sections.get("data", {})}
    sections["run"] = {"dir": str(place / "next"), **sections.get("run", {})}
    return with_values(config, **sections)


def command(capsys, *words) -> str:
    """The last line that elias_utils.py prints."""
    elias_utils.main([str(word) for word in words])
    return capsys.readouterr().out.splitlines()[-1]


def same(one, two) -> bool:
    return np.array_equal(Graph.load(one, 24).labels, Graph.load(two, 24).labels)


# -------------------------------- whose model


def test_the_run_that_is_given_is_the_model(place):
    """By its folder or its config.yaml, wherever it lies now; --no_model is something else."""
    run = place / "one"
    data = ["--data.root", str(place / "sets")]
    of_folder = gen_cluster_A(run, out=place / "a.npz", overrides=data)
    of_config = gen_cluster_A(run / "config.yaml", out=place / "b.npz", overrides=data)
    without = gen_cluster_A(run, model=False, out=place / "c.npz", overrides=data)
    started = gen_cluster_A(settings(place, run={"start_from": str(run)}), out=place / "d.npz")
    assert of_folder.read_bytes() != without.read_bytes()
    assert same(of_folder, of_config)
    assert same(of_folder, started)
    assert not same(of_folder, without)
    assert Graph.origin(of_folder)["embeddings of"] == str(run)
    assert "embeddings of" not in Graph.origin(without)


def test_a_config_means_the_run_that_it_has_trained(place):
    trained = settings(place, run={"dir": str(place / "one")})
    assert same(
        gen_cluster_A(trained),
        gen_cluster_A(
            place / "one", out=place / "a.npz", overrides=["--data.root", str(place / "sets")]
        ),
    )
    untrained = Graph.origin(gen_cluster_A(settings(place)))
    assert "embeddings of" not in untrained


def test_a_run_without_a_model_is_not_a_config(place, capsys):
    """Its config.yaml alone would cluster without the model that was asked for."""
    shutil.rmtree(place / "one" / "model")
    with pytest.raises(SystemExit, match="the run has no model yet"):
        command(capsys, "gen_cluster_A", place / "one" / "config.yaml")
    assert not (place / "one.cluster_A.npz").exists()


def test_a_config_named_config_is_a_config(place, capsys):
    (place / "mine").mkdir()
    path = place / "mine" / "config.yaml"
    path.write_text(to_yaml(settings(place)))
    got = command(capsys, "gen_cluster_A", path, "--no_model", "true")
    assert got == f"graph: {place / 'next.cluster_A.npz'}"


def test_stages_make_their_own_graphs(place):
    config = settings(place)
    stages = build_config(
        {s: v for s, v in to_mapping(config).items() if s != "stages"},
        {},
        [{"name": "warm-up"}, {"name": "stage-1"}],
    )
    with pytest.raises(
        ConfigError, match="this config has stages, each of which makes its own graph"
    ):
        gen_cluster_A(stages)
    assert gen_cluster_A(stages, out=place / "a.npz").is_file()


# -------------------------------- the published order


def test_the_published_order(place, capsys):
    """Cluster, train, approximate, train: each step finds what the one before has left, without a
    flag."""
    first, second = place / "elias-1.yaml", place / "elias-2.yaml"
    first.write_text(to_yaml(settings(place, run={"dir": str(place / "ELIAS-1")})))
    second.write_text(
        to_yaml(
            settings(
                place,
                method=STAGE2,
                run={"dir": str(place / "ELIAS-2"), "start_from": str(place / "ELIAS-1")},
            )
        )
    )
    configs = [load_any_config(path) for path in (first, second)]
    graph = command(capsys, "gen_cluster_A", first, "--no_model", "true")
    assert graph == f"graph: {place}/ELIAS-1.cluster_A.npz"
    one = train.fit(configs[0])
    assert (
        f"graph: {one}.cluster_A.npz, made of TF-IDF features\n" in (one / "train.log").read_text()
    )
    assert same(one / "graph.npz", f"{one}.cluster_A.npz")
    assert command(capsys, "gen_approx_A", first) == f"graph: {one}/approx_A.npz"
    two = train.fit(configs[1])
    assert (
        f"graph: {one}/approx_A.npz, made of what the clusters" in (two / "train.log").read_text()
    )
    assert same(two / "graph.npz", one / "approx_A.npz")

    # the longer order of the released script: clusters by the trained model, then stage 1 anew
    before = (one / "graph.npz").read_bytes()
    assert command(capsys, "gen_cluster_A", one / "config.yaml") == f"graph: {one}.cluster_A.npz"
    train.fit(configs[0], overwrite=True)
    log = (one / "train.log").read_text()
    assert f"graph: {one}.cluster_A.npz, made of TF-IDF features and the embeddings of {one}" in log
    assert (one / "graph.npz").read_bytes() != before
    assert same(one / "graph.npz", f"{one}.cluster_A.npz")
    assert not (one / "approx_A.npz").exists()  # it was of the run that is gone


def test_the_file_is_what_is_taken(place):
    """Not a graph that only looks like it."""
    path = gen_cluster_A(settings(place), model=False)
    graph = Graph.load(path, 24)
    moved = Graph.from_csr(graph.to_csr()[::-1])
    moved.save(path, Graph.origin(path))
    assert not np.array_equal(moved.labels, graph.labels)
    folder = train.fit(settings(place, train={"epochs": 1}))
    assert same(folder / "graph.npz", path)


# -------------------------------- refusals


def other_labels(place):
    path = place / "sets" / "set" / "Y.trn.npz"
    sp.save_npz(path, sp.load_npz(path)[:, ::-1].tocsr())


def other_texts(place):
    path = place / "sets" / "set" / "raw" / "trn_X.txt"
    path.write_text("".join(f"{line} again\n" for line in path.read_text().splitlines()[::-1]))
    for built in (place / "sets" / "set").glob("X.*.npz"):
        built.unlink()


@pytest.mark.parametrize(
    ("sections", "change", "message"),
    [
        ({"method": {"max_leaf": 12}}, None, "with method.max_leaf 5, this run has 12"),
        ({"method": {"cluster_seed": 9}}, None, "with method.cluster_seed 0, this run has 9"),
        ({"data": {"val_fraction": 0.3}}, None, "of other training points"),
        ({}, other_labels, "of other labels of the points"),
        ({}, other_texts, "of other TF-IDF features"),
    ],
)
def test_clusters_of_another_kind_are_refused(place, sections, change, message):
    path = gen_cluster_A(settings(place), model=False)
    if change:
        change(place)
    with pytest.raises(
        InputError,
        match=rf"next\.cluster_A\.npz: this graph was made {message}; make it again \(pyth",
    ):
        train.fit(settings(place, **sections))
    assert not (place / "next").exists()
    path.unlink()
    assert (
        "graph: balanced clusters of sparse"
        in (train.fit(settings(place, **sections)) / "train.log").read_text()
    )


def test_clusters_by_another_run_than_the_one_it_starts_from(place):
    gen_cluster_A(settings(place, run={"start_from": str(place / "one")}))
    other = train.fit(settings(place, train={"epochs": 1}, run={"dir": str(place / "other")}))
    with pytest.raises(
        InputError, match=r"next\.cluster_A\.npz: this graph was made of other weights of the model"
    ):
        train.fit(settings(place, run={"start_from": str(other)}))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"kappa": 11}, "with method.kappa 24, this run has 11"),
        ({"beam": 2}, "with method.beam 8, this run has 2"),
    ],
)
def test_a_graph_approximated_otherwise_is_made_anew(place, method, message):
    """As the run would have made it, and said; kappa is an option of the run that comes after."""
    path = gen_approx_A(settled(place))
    config = settings(place, method={**STAGE2, **method}, run={"start_from": str(place / "one")})
    folder = train.fit(config)
    assert (
        f"graph: {path} was made {message}, so the run makes its own"
        in (folder / "train.log").read_text()
    )
    path.unlink()
    assert same(
        folder / "graph.npz",
        train.fit(with_values(config, run={"dir": str(place / "two")})) / "graph.npz",
    )


def test_a_graph_of_a_model_that_was_trained_again_is_made_anew(place):
    path = gen_approx_A(settled(place))
    kept = path.read_bytes()
    train.fit(settings(place, run={"dir": str(place / "one"), "seed": 5}), overwrite=True)
    assert not path.exists()
    path.write_bytes(kept)  # as after a run that was gone on with
    folder = train.fit(settings(place, method=STAGE2, run={"start_from": str(place / "one")}))
    assert (
        f"graph: {path} was made of other weights of the model"
        in (folder / "train.log").read_text()
    )


def settled(place) -> Path:
    """The run `one` with its data set where it lies now."""
    (place / "one" / "config.yaml").write_text(
        to_yaml(settings(place, run={"dir": str(place / "one")}))
    )
    return place / "one"


def test_a_graph_that_says_nothing_is_taken(place):
    """As another program writes it; a damaged one is refused."""
    path = gen_cluster_A(settings(place), model=False)
    sp.save_npz(path, sp.load_npz(path))
    folder = train.fit(settings(place, train={"epochs": 1}))
    assert (
        f"graph: {path}, which says nothing of what it was made of"
        in (folder / "train.log").read_text()
    )
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"cluster_A\.npz: not an .npz of arrays"):
        train.fit(settings(place), overwrite=True)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=r"cluster_A\.npz: "):
        train.fit(settings(place), overwrite=True)
    assert (folder / "finished").exists()


@pytest.mark.parametrize(
    "said", [b"{", b"[1]", b"x" * 100_000, b"[" * 60_000, b'{"method.max_leaf": {"a": [1]}}']
)
def test_a_file_that_says_strange_things(place, said, monkeypatch):
    path = gen_cluster_A(settings(place), model=False)
    monkeypatch.setattr(json, "dumps", lambda value: said.decode())
    Graph.load(path, 24).save(path)
    monkeypatch.undo()
    if said == b"[1]":
        assert Graph.origin(path) == {}
        return
    with pytest.raises(
        InputError, match=r"cluster_A\.npz: (made_of: not JSON|this graph was made with)"
    ):
        train.fit(settings(place))
    assert not (place / "next").exists()


def test_a_file_by_name_of_other_points_is_said(place, caplog):
    path = gen_cluster_A(settings(place), model=False, out=place / "mine.npz")
    other_labels(place)
    with caplog.at_level(logging.WARNING):
        folder = train.fit(settings(place, method={"graph": str(path)}, train={"epochs": 1}))
    assert (
        f"method.graph: {path} was made of the labels of other points"
        in (folder / "train.log").read_text()
    )


def test_what_a_file_says(place):
    said = Graph.origin(
        gen_cluster_A(place / "one", overrides=["--data.root", str(place / "sets")])
    )
    assert json.loads(json.dumps(said)) == said
    assert (said["method.max_leaf"], said["method.cluster_seed"]) == (5, 0)


# -------------------------------- the released YAMLs

RELEASED = """project: ELIAS
loss: elias-loss
data_manager: xmc
tf: {encoder}
tf_pooler: cls
tf_max_len: 16
resume_path: ''
num_val_points: 8
A_init_path: ''
max_leaf: 5
beam_size: 4
alpha: 10
beta: 3
K: 20
kappa: 10
loss_lambda: 0.05
dropout: 0.1
bsz: 16
eval_interval: 3
w_accumulation_steps: 2
lr: 0.01
lr_wl: 0.01
lr_tf: 1.0e-4
use_swa: False
swa_start: 1
swa_step: 2
num_gpu: 1
"""
RELEASED_1 = """__dependency__: configs/elias.yaml
expname: 'ELIAS-1'
dataset: set
net: elias-1
A_init_path: 'Results/[project]/[dataset]/[expname]/cmat.npz'
loss_lambda: 0.0
num_epochs: 2
"""
RELEASED_2 = """__dependency__: configs/set/elias-1.yaml
expname: 'ELIAS-2'
net: elias-2
resume_path: Results/[project]/[dataset]/ELIAS-1/model.pt
A_init_path: Results/[project]/[dataset]/ELIAS-1/A_approx.npz
loss_lambda: 0.05
num_epochs: 3
use_swa: True
"""


def test_the_released_yamls_in_their_order(trained, tiny_encoder, tmp_path, monkeypatch, capsys):
    """Flat configs of the layout and the file names that ELIAS published, on a small set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "set").mkdir(parents=True)
    (tmp_path / "configs" / "elias.yaml").write_text(RELEASED.format(encoder=tiny_encoder))
    first, second = (
        tmp_path / "configs" / "set" / "elias-1.yaml",
        tmp_path / "configs" / "set" / "elias-2.yaml",
    )
    first.write_text(RELEASED_1)
    second.write_text(RELEASED_2)
    shutil.copytree(trained / "sets", tmp_path / "Datasets")
    one, two = (Path("Results") / "ELIAS" / "set" / name for name in ("ELIAS-1", "ELIAS-2"))

    assert (
        command(capsys, "gen_cluster_A", first, "--no_model", "true")
        == f"graph: {one}.cluster_A.npz"
    )
    assert train.fit(load_any_config(first)) == one
    assert command(capsys, "gen_approx_A", first) == f"graph: {one / 'approx_A.npz'}"
    assert train.fit(load_any_config(second)) == two
    logs = [(run / "train.log").read_text() for run in (one, two)]
    assert f"graph: {one}.cluster_A.npz, made of TF-IDF features\n" in logs[0]
    assert f"graph: {one / 'approx_A.npz'}, made of what" in logs[1]
    assert same(two / "graph.npz", one / "approx_A.npz")


def _graph(**changes):
    """The members of a graph of 4 clusters and 20 labels, some of them changed."""
    members = {
        "format": b"csr",
        "shape": (4, 20),
        "data": np.ones(20, np.float32),
        "indices": np.arange(20),
        "indptr": np.arange(0, 21, 5),
    }
    return members | changes


@pytest.mark.parametrize(
    ("members", "message"),
    [
        # wrapped around
        (_graph(indices=np.arange(20) - 3), "got -3 in indices at entry 0, outside [0, 20)"),
        (_graph(indices=np.arange(20) + 3), "got 20 in indices at entry 17, outside [0, 20)"),
        (_graph(data=np.full(20, np.nan)), "expected a finite number, got nan at row 0, column 0"),
        (_graph(data=np.full(20, 2.0)), "expected edge values in (0, 1], got 2.0 to 2.0"),
        (
            _graph(data=np.full(20, "1.0")),
            "array 'data': expected real numbers, got values of type <U3",
        ),
        (
            _graph(format=b"csc"),
            "expected a valid CSC of shape (4, 20), got indptr of 5 numbers, not 21",
        ),
        (_graph(indptr=np.array([0, 9, 3, 15, 20])), "got indptr that falls after 1"),
        (_graph(indptr=np.array([0, 0, 5, 10, 20])), "cluster 0 (1 in all) has none"),
    ],
)
def test_a_broken_graph_is_one_error_before_there_is_a_run(make_config, tmp_path, members, message):
    np.savez(tmp_path / "graph.npz", **members)
    config = make_config(
        method={**STAGE1, "graph": str(tmp_path / "graph.npz")}, loss={"name": "bce"}
    )
    with pytest.raises(InputError) as error:
        train.fit(config)
    assert str(error.value).startswith(f"{tmp_path / 'graph.npz'}: ") and message in str(
        error.value
    )
    assert not config.run_folder.exists()
