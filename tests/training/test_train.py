"""The loop, the run folder, evaluation and prediction as a user runs them."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from safetensors.torch import load_file

import eval as evaluation
import train
from engine import trainer
from engine.conformance.made import write_dataset
from models.dual.dexml import Dexml
from predict import Predictor
from tests.commands import run
from tests.conftest import with_values
from utils.config.config import ConfigError, to_yaml
from utils.files import folder_written_whole, settled_folder, written_whole
from utils.run.lock import locked

ROOT = Path(__file__).parents[2]


def lines(folder, kind):
    return [
        r
        for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        if r["kind"] == kind
    ]


def weights(folder):
    return {
        n: v
        for f in ("shared", "process-0")
        for n, v in load_file(folder / "last" / f"{f}.safetensors").items()
    }


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_a_run_folder_holds_what_the_design_says(make_config):
    folder = train.fit(make_config(run={"tensorboard": True}))
    names = {p.name for p in folder.iterdir()}
    assert names == {
        "config.yaml",
        "environment.json",
        "train.log",
        "metrics.jsonl",
        "val_rows.npy",
        "val_metrics.json",
        "model",
        "last",
        "tensorboard",
        "finished",
    }
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__
    assert {"commit", "cpu", "cores", "data_hash", "processes"} <= set(environment)
    assert (folder / "model" / "tokenizer.json").is_file()
    assert "validation after epoch 2" in (folder / "train.log").read_text()
    assert not [n for n in names if "partial" in n]


def test_same_seed_same_weights_other_seed_other_weights(make_config, tmp_path):
    config = make_config(encoder={"dropout": 0.1})
    first = weights(train.fit(config))
    again = weights(train.fit(with_values(config, run={"dir": str(tmp_path / "again")})))
    other = weights(train.fit(with_values(config, run={"dir": str(tmp_path / "other"), "seed": 1})))
    assert equal(first, again)
    assert not equal(first, other)


@pytest.mark.parametrize(
    "settings",
    [
        {"encoder": {"dropout": 0.2}},
        {"method": {"name": "ova", "tau": 0.1}},
        {"method": {"pool": "hnm", "refresh_interval": 2}},
    ],
)
def test_resuming_gives_the_weights_of_an_uninterrupted_run(
    make_config, tmp_path, settings, monkeypatch
):
    config = make_config(**settings, train={"epochs": 4})
    whole = train.fit(config)
    cut = with_values(config, run={"dir": str(tmp_path / "cut")})
    epochs = []
    original = trainer.train_epoch

    def stop_in_the_third(run, *others):
        epochs.append(run.state.epoch)
        if len(epochs) == 3:
            raise KeyboardInterrupt
        return original(run, *others)

    monkeypatch.setattr(trainer, "train_epoch", stop_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        train.fit(cut)
    monkeypatch.setattr(trainer, "train_epoch", original)
    train.fit(cut, resume=True)
    assert equal(weights(whole), weights(cut.run_folder))
    assert [r["loss"] for r in lines(whole, "train")] == [
        r["loss"] for r in lines(cut.run_folder, "train")
    ]


def test_resume_on_an_empty_folder_starts(make_config):
    folder = train.fit(make_config(), resume=True)
    assert [r["epoch"] for r in lines(folder, "train")] == [1, 2]


def test_a_folder_with_a_run_is_refused(make_config):
    config = make_config()
    folder = train.fit(config)
    with pytest.raises(
        ValueError, match="holds this run already; use --resume to go on, --overwrite"
    ):
        train.fit(config)
    other = with_values(config, optim={"lr": 0.5}, loss={"name": "softmax"})
    for resume in (False, True):
        with pytest.raises(
            ValueError, match=r"another config: loss.name .*, optim.lr \(0.05 -> 0.5\)"
        ):
            train.fit(other, resume=resume)
    before = weights(folder)
    train.fit(other, overwrite=True)
    assert not equal(before, weights(folder))
    assert len(lines(folder, "train")) == 2  # the old log is gone


def test_a_damaged_config_of_a_run_is_a_clear_error(make_config):
    config = make_config()
    folder = train.fit(config)
    whole = (folder / "config.yaml").read_text()
    for damaged in (whole[:30], "data: [", "", "3"):
        (folder / "config.yaml").write_text(damaged)
        with pytest.raises(ValueError, match=r"another config|config is damaged"):
            train.fit(config, resume=True)


def test_two_runs_do_not_share_a_folder(make_config):
    config = make_config()
    folder = train.fit(config)
    with locked(folder):
        for again in ({"resume": True}, {"overwrite": True}, {}):
            with pytest.raises(ValueError, match="another process is training in this folder"):
                train.fit(config, **again)
    (folder / ".lock").touch()  # left by a run that was killed
    train.fit(config, resume=True)
    assert not (folder / ".lock").exists()


def test_a_folder_with_other_things_is_never_touched(make_config, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    config = make_config(run={"dir": str(tmp_path / "mine")})
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="not empty and holds no run"):
            train.fit(config, overwrite=overwrite)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    make_config, monkeypatch
):
    original = Dexml.backward
    calls = []

    def poisoned(self, batch):
        calls.append(1)
        return original(self, batch) * (math.nan if len(calls) == 5 else 1.0)

    monkeypatch.setattr(Dexml, "backward", poisoned)
    config = make_config(train={"epochs": 3})  # 3 steps an epoch
    with pytest.raises(FloatingPointError, match=r"the loss became nan at step 5 \(epoch 2\)"):
        train.fit(config)
    assert json.loads((config.run_folder / "last" / "progress.json").read_text())["epoch"] == 1
    assert evaluation.evaluate(config.run_folder)["P@1"] >= 0


def test_the_best_epoch_is_kept_and_patience_stops(make_config, monkeypatch):
    values = iter([10.0, 30.0, 20.0, 25.0, 99.0])

    real = trainer.evaluate

    def scored(*asked):
        return replace(real(*asked), metrics={"nDCG@5": next(values)})

    monkeypatch.setattr(trainer, "evaluate", scored)
    config = make_config(train={"epochs": 5, "patience": 2})
    folder = train.fit(config)
    assert [r["nDCG@5"] for r in lines(folder, "val")] == [10.0, 30.0, 20.0, 25.0]
    told = json.loads((folder / "val_metrics.json").read_text())
    assert (told["epoch"], told["nDCG@5"]) == (2, 30.0)
    assert "stopping early" in (folder / "train.log").read_text()


def test_evaluation_interval_and_zero_epochs(make_config, tmp_path):
    folder = train.fit(make_config(train={"epochs": 5, "eval_interval": 2}))
    assert [r["epoch"] for r in lines(folder, "val")] == [2, 4, 5]
    untrained = train.fit(make_config(train={"epochs": 0}, run={"dir": str(tmp_path / "zero")}))
    assert evaluation.evaluate(untrained)["P@1"] >= 0
    assert (untrained / "tst_score_mat.npz").is_file()


def test_without_a_validation_split_the_loss_decides(make_config):
    folder = train.fit(make_config(data={"val_fraction": 0.0}, train={"epochs": 3}))
    assert lines(folder, "val") == []
    assert json.loads((folder / "val_metrics.json").read_text()) == {"epoch": 3}


def test_unknown_track_metric(make_config):
    with pytest.raises(
        ConfigError, match=r"track_metric 'nDCG@4' is not computed; computed: .*nDCG@5"
    ):
        train.fit(make_config(train={"track_metric": "nDCG@4"}))


@pytest.mark.parametrize("settings", [{"ks": [1, 21]}, {"top_k": 21}])
def test_k_larger_than_the_number_of_labels(make_config, settings):
    config = make_config(eval=settings)
    with pytest.raises(ConfigError, match="is 21, larger than the number of labels of tiny, 20"):
        train.fit(config)
    assert not config.run_folder.exists()


def test_stages_run_in_order_in_one_folder_and_finished_ones_are_skipped(make_config):
    stages = (
        {"name": "first", "train": {"epochs": 2}},
        {"name": "second", "method": {"name": "ova"}},
    )
    config = make_config(stages=stages, train={"epochs": 1})
    folder = train.fit(config)
    first = folder / "stages" / "first"
    assert len(lines(first, "train")) == 2
    assert len(lines(folder, "train")) == 1
    assert json.loads((folder / "model" / "method.json").read_text())["method"] == "ova"
    assert evaluation.evaluate(folder)["P@1"] >= 0
    before = (first / "metrics.jsonl").stat().st_mtime_ns
    train.fit(config, resume=True)
    assert (first / "metrics.jsonl").stat().st_mtime_ns == before
    again = train.fit(config, overwrite=True)
    assert len(lines(again, "train")) == 1


def test_a_run_starts_from_another_ones_model(make_config, tmp_path):
    start = train.fit(make_config())
    config = make_config(
        run={"start_from": str(start), "dir": str(tmp_path / "next")}, train={"epochs": 0}
    )
    folder = train.fit(config)
    assert equal(
        load_file(folder / "model" / "head.safetensors"),
        load_file(start / "model" / "head.safetensors"),
    )
    ova = train.fit(
        make_config(method={"name": "ova"}, run={"dir": str(tmp_path / "ova")}, train={"epochs": 1})
    )
    other = train.fit(
        with_values(config, run={"start_from": str(ova), "dir": str(tmp_path / "other")})
    )
    assert equal(
        load_file(other / "model" / "head.safetensors"),
        load_file(ova / "model" / "head.safetensors"),
    )
    tree = train.fit(
        make_config(
            method={"name": "xr-linear", "max_leaf": 5}, run={"dir": str(tmp_path / "tree")}
        )
    )
    with pytest.raises(
        ConfigError, match="a dexml run cannot start from a xr-linear run: it is one without an"
    ):
        train.fit(with_values(config, run={"start_from": str(tree), "dir": str(tmp_path / "bad")}))


def test_evaluation_refuses_another_validation_split(make_config):
    folder = train.fit(make_config())
    rows = np.load(folder / "val_rows.npy")
    np.save(folder / "val_rows.npy", rows + 1)
    with pytest.raises(ValueError, match="another validation split"):
        evaluation.evaluate(folder, "val")
    (folder / "val_rows.npy").unlink()
    with pytest.raises(ValueError, match=r"val_rows.npy: no such file"):
        evaluation.evaluate(folder, "val")
    with pytest.raises(ValueError, match="split must be one of trn, val, tst, got 'test'"):
        evaluation.evaluate(folder, "test")
    with pytest.raises(ValueError, match="not a run folder"):
        evaluation.evaluate(folder / "nothing")


def test_what_the_run_fixed_cannot_be_overridden_later(make_config, caplog):
    folder = train.fit(make_config())
    for word in ("--data.max_len", "--encoder.normalize", "--method.tau"):
        with pytest.raises(
            ConfigError, match=f"{word[2:]} is fixed by the run; what can be overridden: eval"
        ):
            evaluation.evaluate(folder, "tst", [word, "5"])
    with pytest.raises(
        ConfigError, match="eval.ks is 21, larger than the number of labels of tiny, 20"
    ):
        evaluation.evaluate(folder, "tst", ["--eval.ks", "[1, 21]"])
    assert set(evaluation.evaluate(folder, "tst", ["--eval.ks", "[1, 2]"])) >= {"P@1", "P@2"}
    packed = ["--encoder.packing", "true"]  # how texts are encoded, not what they are
    assert evaluation.evaluate(folder, "tst", packed) == evaluation.evaluate(folder, "tst")


def test_a_failed_start_leaves_nothing_and_takes_nothing(make_config, tmp_path):
    """Whatever is refused before the first step neither makes a folder nor removes the run that is
    there."""
    config = make_config()
    good = train.fit(config)
    before = weights(good)
    for change in (
        {"encoder": {"init": "no/such"}},
        {"data": {"name": "tinny"}},
        {"train": {"track_metric": "P@7"}},
        {"run": {"start_from": str(tmp_path / "nothing")}},
    ):
        bad = with_values(config, **change)
        with pytest.raises(ValueError):
            train.fit(bad, overwrite=True)
        assert equal(before, weights(good))
        fresh = with_values(bad, run={"dir": str(tmp_path / "fresh")})
        with pytest.raises(ValueError):
            train.fit(fresh)
        assert not (tmp_path / "fresh").exists()
    staged = with_values(config, data={"name": "tinny"})
    with pytest.raises(ValueError):
        train.fit(
            type(staged)(**{**vars(staged), "stages": ({"name": "a"}, {"name": "b"})}),
            overwrite=True,
        )
    assert equal(before, weights(good))


def test_damaged_models_are_one_clear_error(make_config):
    folder = train.fit(make_config())
    for name in ("head.safetensors", "method.json", "label_embeddings.npy", "bag.json"):
        path = folder / "model" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(
            ValueError, match="the model cannot be loaded; a file is missing or damaged"
        ):
            evaluation.evaluate(folder)
        path.unlink()
        with pytest.raises(
            ValueError, match="the model cannot be loaded; a file is missing or damaged"
        ):
            evaluation.evaluate(folder)
        path.write_bytes(whole)


def test_labels_without_texts(make_config, tmp_path):
    from predict import Predictor

    root = tmp_path / "sets"
    (write_dataset(root / "tiny") / "raw" / "Y.txt").unlink()
    with pytest.raises(
        ValueError, match=r"Y.txt: no such file; method dexml encodes the labels' texts"
    ):
        train.fit(make_config(data={"root": str(root)}))
    folder = train.fit(make_config(data={"root": str(root)}, method={"name": "ova", "tau": 0.1}))
    assert evaluation.evaluate(folder)["P@1"] >= 0
    assert Predictor(folder)(["the linux tool"], k=1)[0][0]["text"].startswith("label ")


def test_splits_without_points_or_labels(make_config, tmp_path, caplog):
    import scipy.sparse as sp

    folder = train.fit(make_config(data={"val_fraction": 0.0}))
    with pytest.raises(
        ValueError, match=r"split val of tiny has no points \(data.val_fraction is 0.0\)"
    ):
        evaluation.evaluate(folder, "val")
    made = write_dataset(tmp_path / "sets" / "tiny")
    sp.save_npz(made / "Y.tst.npz", sp.csr_matrix((20, 20), dtype=np.float32))
    empty = train.fit(
        make_config(data={"root": str(made.parent)}, run={"dir": str(tmp_path / "empty")})
    )
    assert evaluation.evaluate(empty)["P@1"] == 0.0


def test_resuming_keeps_where_the_run_began(make_config):
    config = make_config()
    folder = train.fit(config)
    first = json.loads((folder / "environment.json").read_text())
    (folder / "finished").unlink()
    train.fit(config, resume=True)
    again = json.loads((folder / "environment.json").read_text())
    assert {k: v for k, v in again.items() if k != "resumed"} == first
    assert len(again["resumed"]) == 1


def test_validation_metrics_of_eval_are_those_of_training(make_config):
    folder = train.fit(make_config())
    best = json.loads((folder / "val_metrics.json").read_text())
    again = evaluation.evaluate(folder, "val")
    assert again["nDCG@5"] == pytest.approx(best["nDCG@5"], abs=1e-4)


def test_accumulated_files_are_whole_or_absent(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(OSError), written_whole(path) as partial:
        partial.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    folder = tmp_path / "model"
    for content in ("one", "two"):
        with folder_written_whole(folder) as partial:
            (partial / "x").write_text(content)
    with pytest.raises(OSError), folder_written_whole(folder) as partial:
        (partial / "x").write_text("three")
        raise OSError("disk full")
    assert (folder / "x").read_text() == "two"
    folder.rename(tmp_path / ".model.old")  # killed between the two renames
    assert (settled_folder(folder) / "x").read_text() == "two"


def test_commands(make_config, tmp_path):
    """train.py, eval.py and predict.py as commands."""
    config = tmp_path / "my.yaml"
    config.write_text(
        to_yaml(make_config(run={"dir": None, "root": str(tmp_path / "R"), "expname": None}))
    )
    command = ["train.py", "--train.epochs", "3", config]
    got = run(*command)
    folder = tmp_path / "R" / "XMCKit" / "tiny" / "my"
    assert got.stdout.splitlines()[-1] == f"run: {folder}"
    again = run(*command, check=False)
    assert again.returncode == 1
    assert again.stderr.splitlines()[-1].startswith(f"error: {folder} holds this run already")
    for named in (folder, folder / "config.yaml"):
        assert "PSnDCG" in run("eval.py", named).stderr
    metrics = json.loads((folder / "tst_metrics.json").read_text())
    assert (metrics["points"], metrics["labels"]) == (20, 20)
    texts, out = tmp_path / "texts.txt", tmp_path / "out.jsonl"
    texts.write_text("the kernel tool\n\nfont and mail\n")
    run("predict.py", folder, "--texts", texts, "--k", "2", "--out", out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["text"] for r in rows] == ["the kernel tool", "", "font and mail"]
    assert all(len(r["labels"]) == 2 for r in rows)
    assert {"label", "text", "score", "probability"} == set(rows[0]["labels"][0])
    names = tmp_path / "new.txt"
    names.write_text("zebra\nkernel\n")
    got = run("predict.py", folder, "--text", "x", "--labels", names)
    assert len(json.loads(got.stdout)["labels"]) == 2  # the default k gives way to fewer labels
    got = run("predict.py", folder, "--text", "x", "--k", "21", check=False)
    assert got.returncode == 1
    assert (
        got.stderr.splitlines()[-1] == "error: k must be from 1 to the number of labels, 20; got 21"
    )


def test_score_matrix_is_the_saved_top_k(make_config):
    import scipy.sparse as sp

    folder = train.fit(make_config(eval={"top_k": 6, "ks": [1, 5]}))
    evaluation.evaluate(folder)
    scores = sp.load_npz(folder / "tst_score_mat.npz")
    assert np.diff(scores.indptr).tolist() == [6] * 20


def test_data_whose_labels_stand_in_another_order_is_refused(make_config, tmp_path, tiny_root):
    root = tmp_path / "sets"
    shutil.copytree(tiny_root / "tiny", root / "tiny")
    folder = train.fit(make_config(data={"root": str(root)}, train={"epochs": 1}))
    assert Predictor(folder)(["the linux tool"])
    lines = (root / "tiny" / "raw" / "Y.txt").read_text().splitlines()
    (root / "tiny" / "raw" / "Y.txt").write_text("\n".join(reversed(lines)) + "\n")
    with pytest.raises(
        ValueError, match=r"Y.txt is not what .* was trained with .*: an id would be another label"
    ):
        evaluation.evaluate(folder)
    for split in ("trn", "tst"):
        matrix = sp.load_npz(root / "tiny" / f"Y.{split}.npz")
        sp.save_npz(root / "tiny" / f"Y.{split}.npz", matrix[:, ::-1].tocsr())
    with pytest.raises(
        ValueError, match=r"was trained on data .*, but .*tiny is .*another order of labels"
    ):
        evaluation.evaluate(folder)


def test_a_stage_that_names_nothing_is_refused_before_any_is_trained(make_config):
    first = {"name": "first", "method": {"name": "dexml"}}
    for second, message in (
        (
            {
                "name": "second",
                "method": {"name": "fusion", "members": {"a": "stage:first", "b": "stage:third"}},
            },
            "'stage:third': there is no earlier stage third; earlier stages: first",
        ),
        (
            {
                "name": "second",
                "method": {"name": "fusion", "members": {"a": "stage:first", "b": "no/run"}},
            },
            "no/run: not a run folder",
        ),
        (
            {"name": "second", "train": {"stop_epoch": "best:secnod"}},
            "there is no earlier stage secnod",
        ),
    ):
        config = make_config(method={"name": "fusion"}, stages=[first, second])
        with pytest.raises(ValueError, match=message):
            train.fit(config)
        assert not config.run_folder.exists()


def test_a_model_of_an_unfinished_run_says_so(make_config):
    folder = train.fit(make_config(train={"epochs": 1}))
    evaluation.evaluate(folder)
    assert "not finished" not in (folder / "train.log").read_text()
    (folder / "finished").unlink()
    evaluation.evaluate(folder)
    assert (
        "the run is not finished; this is its best model so far"
        in (folder / "train.log").read_text()
    )
