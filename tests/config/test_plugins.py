"""Methods of modules outside: imported where the user names them, refused where a run folder
does."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import eval as evaluation
import predict
import train
from engine.exporter import export
from utils.config import plugins
from utils.config.config import ConfigError, to_yaml
from utils.config.methods import METHODS, method_class, method_options
from utils.config.sections import MethodConfig
from utils.files import write_text
from utils.run.reopened import load_training_config
from utils.run.stages import member_stages

REPOSITORY = Path(__file__).resolve().parents[2]
MINE = "from models.dual.dexml import Dexml\n\n\nclass Mine(Dexml):\n    pass\n"
EVIL = "from pathlib import Path\n\nPath({!r}).touch()\n\n\nclass Thing:\n    pass\n"


@pytest.fixture(autouse=True)
def nothing_allowed(monkeypatch, tmp_path):
    """A current directory of one's own, and no module of another test."""
    monkeypatch.setattr(plugins, "_allowed", set())
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    yield
    for module in ("mine", "evil", "broken"):
        sys.modules.pop(module, None)


@pytest.fixture
def run(make_config):
    """A finished run."""
    return train.fit(make_config(train={"epochs": 1}))


@pytest.fixture
def stranger(run, tmp_path):
    """A run folder that names a module which lies in it, and in the current directory too."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["method"] = {"name": "evil:Thing"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for folder in (run, tmp_path):
        (folder / "evil.py").write_text(EVIL.format(str(tmp_path / "ran")))
    yield run
    assert not (tmp_path / "ran").exists()


def refused():
    return pytest.raises(ConfigError, match=r"config.yaml: method.name.*evil:Thing.*--plugin evil")


def test_commands_refuse_the_code_of_a_run_folder(stranger, tmp_path):
    with refused():
        evaluation.evaluate(stranger)
    with refused():
        predict.Predictor(stranger)
    with refused():
        export(stranger, tmp_path / "exported")
    with refused():
        load_training_config(stranger / "config.yaml", [], member_stages)


def test_a_run_without_its_environment_is_a_run_folder_still(stranger):
    (stranger / "environment.json").unlink()
    with refused():
        load_training_config(stranger / "config.yaml", [], member_stages)


def test_a_command_refuses_what_lies_beside_it(stranger, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "utils.export", str(stranger), str(tmp_path / "exported")],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and "--plugin evil" in done.stderr


def test_a_run_that_another_starts_from_is_refused(stranger, make_config, tmp_path):
    with refused():
        train.fit(make_config(run={"dir": str(tmp_path / "next"), "start_from": str(stranger)}))


def test_a_member_of_a_fusion_is_refused(stranger, make_config, tmp_path):
    fusion = {"name": "fusion", "members": {"theirs": str(stranger)}}
    with refused():
        train.fit(make_config(method=fusion, run={"dir": str(tmp_path / "fusion")}))


def test_a_source_of_features_is_refused(stranger, make_config, tmp_path):
    trees = {"name": "xr-linear", "features": ["tfidf", str(stranger)]}
    with refused():
        train.fit(make_config(method=trees, run={"dir": str(tmp_path / "trees")}))


def test_a_member_inside_of_a_model_is_refused(run, make_config, tmp_path):
    whole = make_config(
        method={"name": "fusion", "members": {"one": str(run)}},
        run={"dir": str(tmp_path / "fusion")},
    )
    folder = train.fit(whole)
    inside = folder / "model" / "members" / "one" / "config.yaml"
    inside.write_text(inside.read_text().replace("name: dexml", "name: evil:Thing"))
    (tmp_path / "evil.py").write_text(EVIL.format(str(tmp_path / "ran")))
    with pytest.raises(ValueError, match="--plugin evil"):
        predict.Predictor(folder)
    assert not (tmp_path / "ran").exists()


def test_training_imports_what_the_users_own_config_names(make_config, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "my.yaml").write_text(
        to_yaml(make_config(train={"epochs": 1})).replace("name: dexml", "name: mine:Mine")
    )
    config = load_training_config(tmp_path / "my.yaml", [], member_stages)
    folder = train.fit(config)
    assert type(config.method) is method_class("dexml").Options
    monkeypatch.setattr(plugins, "_allowed", set())
    with pytest.raises(ConfigError, match="--plugin mine"):
        evaluation.evaluate(folder)
    plugins.allow("mine")
    assert evaluation.evaluate(folder)["P@1"] >= 0


def test_stages_and_overrides_may_name_methods_of_ones_own(make_config, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    sections = yaml.safe_load(to_yaml(make_config()))
    sections["stages"] = [{"name": "first"}, {"name": "last", "method": {"name": "mine:Mine"}}]
    path = tmp_path / "my.yaml"
    write_text(path, yaml.safe_dump(sections))
    assert load_training_config(path, [], member_stages).stages[1]["method"]["name"] == "mine:Mine"
    words = ["--stages.first.method.name", "mine:Mine"]
    plugins._allowed.clear()
    sections["stages"].pop()
    write_text(path, yaml.safe_dump(sections))
    assert load_training_config(path, words, member_stages).stages[0]["method"]["name"] == words[1]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("mine:Other", r"x: .*mine\.py has no Other"),
        ("gone:Mine", "x: there is no module gone"),
        ("mine:", "x: expected module:name, got 'mine:'"),
        ("../mine:Mine", "x: expected module:name"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, name, expected):
    (tmp_path / "mine.py").write_text(MINE)
    for module in ("mine", "gone"):
        plugins.allow(module)
    with pytest.raises(ConfigError, match=expected):
        plugins.resolve(name, "x")


def test_what_a_module_raises_is_its_own(tmp_path):
    (tmp_path / "broken.py").write_text("import something_that_is_not_there\n")
    plugins.allow("broken")
    with pytest.raises(ModuleNotFoundError, match="something_that_is_not_there"):
        plugins.resolve("broken:Mine", "x")


def test_a_method_has_options(tmp_path):
    (tmp_path / "mine.py").write_text("Mine = print\n")
    plugins.allow("mine")
    with pytest.raises(ConfigError, match="expected the class of a method.*built-in function"):
        method_class("mine:Mine")


def test_plugin_takes_the_name_of_a_module(capsys):
    parser = plugins.argparse.ArgumentParser()
    plugins.add_plugin_option(parser)
    parser.parse_args(["--plugin", "mine", "--plugin", "of.mine"])
    assert plugins._allowed == {"mine", "of.mine"}
    with pytest.raises(SystemExit):
        parser.parse_args(["--plugin", "mine.py/x"])
    assert "expected the name of a Python module" in capsys.readouterr().err


def imported_by(program):
    """Modules of this repository and torch that a program has imported."""
    program += (
        "; import sys; print(*(m for m in sys.modules if m.startswith('models') or m == 'torch'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split("\n")[-2].split())


def test_a_config_imports_its_own_method_alone():
    found = imported_by(
        "from utils.config.config import load_config; "
        "load_config('configs/LF-DebianTitles-small/dexml.yaml')"
    )
    assert "models.dual.dexml" in found
    for room in ("models.elias", "models.fusion", "models.trees", "models.classifiers"):
        assert room not in found


def test_sections_are_described_without_a_method():
    found = imported_by("from utils.config.config import describe; describe(['data', 'run'])")
    assert found == set()


def test_every_method_has_options_of_its_own():
    for name in METHODS:
        assert issubclass(method_options(name), MethodConfig)


def test_a_run_that_goes_on_does_not_run_its_encoders_code_unasked(make_config, tmp_path):
    run = train.fit(make_config(train={"epochs": 1}, run={"dir": str(tmp_path / "run")}))
    path = run / "config.yaml"
    saved = path.read_text()
    path.write_text(saved.replace("trust_remote_code: false", "trust_remote_code: true"))
    assert path.read_text() != saved
    asked = ["--encoder.trust_remote_code", "true"]
    for words, trusted in (([], False), (asked, True)):
        config = load_training_config(path, words, member_stages)
        assert config.encoder.trust_remote_code is trusted
    link = tmp_path / "mine.yaml"
    link.symlink_to(path)
    assert not load_training_config(link, [], member_stages).encoder.trust_remote_code
