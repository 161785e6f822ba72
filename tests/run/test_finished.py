"""A run that has finished holds its model, not what training went on from; it is found from any
working folder."""

import json
import shutil
import subprocess

import pytest

import train
from engine.evaluator import evaluate_run
from engine.predictor import Predictor
from utils.errors import InputError
from utils.run import environment
from utils.run import folder as run_folder
from utils.run.finding import find_run
from utils.run.reopened import load_training_config
from utils.run.stages import member_stages

FROM_NONE = {"start_from": None}
TREE = {"name": "tree", "method": {"name": "xr-linear"}, "run": FROM_NONE}
OVA = {"name": "ova", "method": {"name": "ova"}}


@pytest.fixture
def config(make_config):
    """config(**sections) of a run that does not keep what it went on from."""

    def make(**sections):
        return make_config(**{**sections, "run": {**sections.get("run", {}), "keep_last": False}})

    return make


def left(folder):
    """What of training is left in a run folder."""
    names = ("last", "levels", ".last.removed")
    return sorted(str(path.relative_to(folder)) for name in names for path in folder.rglob(name))


# ---- last/


def test_what_a_run_went_on_from_goes_with_its_end(config):
    folder = train.fit(config(train={"epochs": 1}, stages=[TREE, {**OVA, "run": FROM_NONE}]))
    assert left(folder) == []
    assert evaluate_run(folder)["P@1"] >= 0
    assert Predictor(folder / "stages" / "tree")(["the vim tool"], k=2)


def test_what_is_kept_is_kept(make_config):
    folder = train.fit(make_config(train={"epochs": 1}, stages=[TREE, {**OVA, "run": FROM_NONE}]))
    assert left(folder) == ["last", "stages/tree/levels"]


def test_a_finished_run_is_resumed_by_doing_nothing(config, monkeypatch):
    made = config(train={"epochs": 1})
    folder = train.fit(made)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    said = []
    monkeypatch.setattr("engine.trainer.log.info", lambda text, *words: said.append(text % words))
    monkeypatch.setattr("engine.trainer.read_data", None)  # not even the data is read
    assert train.fit(made, resume=True) == folder
    assert said == [f"{folder}: the run has finished already, nothing is trained"]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_removal_that_was_cut_off_is_finished_by_the_next_call(config, monkeypatch):
    made = config(train={"epochs": 1})
    original = run_folder.clear_folder

    def killed(path):
        if path.name == ".last.removed" and path.exists():
            (path / "shared.safetensors").unlink()
            raise KeyboardInterrupt
        original(path)

    monkeypatch.setattr(run_folder, "clear_folder", killed)
    with pytest.raises(KeyboardInterrupt):
        train.fit(made)
    folder = made.run_folder
    assert left(folder) == [".last.removed"] and (folder / "finished").is_file()
    assert Predictor(folder)(["the vim tool"], k=2)
    monkeypatch.setattr(run_folder, "clear_folder", original)
    train.fit(made, resume=True)
    assert left(folder) == []


def test_a_run_killed_between_its_end_and_the_removal(config, monkeypatch):
    made = config(train={"epochs": 1})

    def killed(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr("engine.trainer.drop_progress", killed)
    with pytest.raises(KeyboardInterrupt):
        train.fit(made)
    assert left(made.run_folder) == ["last"]
    monkeypatch.setattr("engine.trainer.drop_progress", run_folder.drop_progress)
    train.fit(made, resume=True)
    assert left(made.run_folder) == []


def test_a_link_to_another_disk_is_emptied_and_stays(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "progress.json").write_text("{}")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last").symlink_to(tmp_path / "disk")
    run_folder.drop_progress(tmp_path / "run")
    assert not any((tmp_path / "disk").iterdir()) and (tmp_path / "run" / "last").is_symlink()


def test_more_training_of_a_finished_run_is_refused_with_the_reason(config):
    folder = train.fit(config(train={"epochs": 3, "stop_epoch": 1}))
    with pytest.raises(InputError, match=r"no last/ to go on from: .* with run.keep_last: true"):
        train.fit(config(train={"epochs": 3}), resume=True)
    with pytest.raises(InputError, match=r"train.epochs \(3 -> 5\).*run.keep_last: true"):
        train.fit(config(train={"epochs": 5, "stop_epoch": 1}), resume=True)
    assert (folder / "finished").is_file()
    assert evaluate_run(folder)["P@1"] >= 0


# ---- where the data lies


@pytest.fixture
def project(config, tiny_root, tmp_path, monkeypatch):
    """A working folder with a data set and a run in it, both named from there."""
    place = tmp_path / "project"
    shutil.copytree(tiny_root / "tiny", place / "Sets" / "tiny")
    monkeypatch.chdir(place)
    made = config(train={"epochs": 1}, data={"root": "Sets"}, run={"dir": "Results/run"})
    train.fit(made)
    (tmp_path / "elsewhere").mkdir()
    return place


def test_relative_data_is_found_from_any_working_folder(project, tmp_path, monkeypatch):
    run = project / "Results" / "run"
    assert "root: Sets" in (run / "config.yaml").read_text()  # as it was given
    assert find_run(run)[1].data.root == "Sets"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert find_run("../project/Results/run")[1].data.root == str(project / "Sets")
    assert evaluate_run("../project/Results/run")["P@1"] >= 0
    config = load_training_config("../project/Results/run/config.yaml", [], member_stages)
    assert config.data.root == str(project / "Sets")
    assert train.fit(config, resume=True) == run


def test_a_data_set_that_moved_is_looked_for_here_and_asked_for(project, tmp_path, monkeypatch):
    run = project / "Results" / "run"
    (project / "Sets").rename(tmp_path / "elsewhere" / "Sets")
    message = (
        rf"^{project}/Sets/tiny: no such data set \(data.root, data.name\); found in .*: nothing. "
        "Where it lies elsewhere: --data.root FOLDER"
    )
    with pytest.raises(InputError, match=message):
        monkeypatch.chdir(tmp_path)
        evaluate_run(run)
    assert evaluate_run(run, overrides=["--data.root", "elsewhere/Sets"])["P@1"] >= 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evaluate_run(run)["P@1"] >= 0  # as it was given, from here


def test_where_a_relative_data_set_is_meant_from_is_said(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"^Sets/tiny: .*, from the working folder {tmp_path}"):
        train.fit(config(data={"root": "Sets"}))


def test_damaged_places_are_refused(project):
    path = project / "Results" / "run" / "environment.json"
    facts = json.loads(path.read_text())
    for wrong in (["a"], {"root": 1}, "x"):
        path.write_text(json.dumps({**facts, "places": wrong}))
        with pytest.raises(InputError, match="environment.json: places: expected folders by key"):
            find_run(path.parent)


# ---- the commit


def test_the_commit_and_whether_files_were_changed(tmp_path, monkeypatch):
    def git(*words):
        command = ["git", "-c", "user.name=a", "-c", "user.email=b@c", *words]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    file = tmp_path / "environment.py"
    file.write_text("1")
    monkeypatch.setattr(environment, "__file__", str(file))
    nothing = {"commit": None, "dirty": None}
    assert environment._commit() == nothing  # no git tree
    git("init")
    assert environment._commit() == nothing  # one that does not know the program
    git("add", ".")
    git("commit", "-m", "x")
    clean = environment._commit()
    assert len(clean["commit"]) == 12 and clean["dirty"] is False
    (tmp_path / "notes.txt").write_text("mine")
    assert environment._commit() == clean
    file.write_text("2")
    assert environment._commit() == {**clean, "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert environment._commit() == nothing  # no git
