"""What a file in a run folder says of code counts nowhere; what one's own file says does."""

import json
import shutil

import pytest
import yaml

from engine.planning import plan_recipe
from utils.config import plugins
from utils.config.config import ConfigError, to_yaml
from utils.config.legacy_yaml import load_any_config
from utils.config.trust import is_ones_own
from utils.errors import InputError
from utils.run.reopened import load_training_config
from utils.run.stages import member_stages, stage_configs

CODE = """
import pathlib
pathlib.Path({marker!r}).touch()
from transformers import BertConfig
class StrangeConfig(BertConfig):
    model_type = "strange"
"""
ASKS = {"encoder": {"trust_remote_code": True}}


@pytest.fixture
def stranger(make_config, tmp_path, tiny_encoder):
    """A run folder whose configs ask for the code that lies in its model."""
    folder = tmp_path / "stranger"
    model = folder / "model"
    shutil.copytree(tiny_encoder, model)
    settings = json.loads((model / "config.json").read_text())
    settings |= {"model_type": "strange", "auto_map": {"AutoConfig": "strange.StrangeConfig"}}
    (model / "config.json").write_text(json.dumps(settings))
    (model / "strange.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    (model / "method.json").write_text('{"method": "dexml", "num_labels": 20}')
    encoder = {"name": str(model), "trust_remote_code": True}
    text = to_yaml(make_config(encoder=encoder, run={"dir": str(tmp_path / "mine")}))
    inside = model / "members" / "one"
    inside.mkdir(parents=True)
    for path in (folder / "config.yaml", folder / "again.yaml", inside / "config.yaml"):
        path.write_text(text)
    yield folder
    assert not (tmp_path / "ran").exists()


def load(path, *words):
    return load_training_config(path, words, member_stages)


def written(path, **sections):
    path.write_text(yaml.safe_dump(sections))
    return path


@pytest.mark.parametrize("name", ["config.yaml", "again.yaml", "model/members/one/config.yaml"])
def test_a_file_of_a_run_folder_asks_in_vain(stranger, tmp_path, name):
    linked = tmp_path / "linked.yaml"
    linked.symlink_to(stranger / name)
    based = written(tmp_path / "based.yaml", base=[str(stranger / name)])
    twice = written(tmp_path / "twice.yaml", base=["based.yaml"])
    for path in (stranger / name, linked, based, twice):
        config = load(path)
        assert not config.encoder.trust_remote_code
        with pytest.raises(InputError, match="custom code"):
            plan_recipe(config)
        assert load(path, "--encoder.trust_remote_code", "true").encoder.trust_remote_code


def test_what_a_strangers_file_names_as_its_base_asks_in_vain(stranger, tmp_path):
    elsewhere = (stranger / "again.yaml").rename(tmp_path / "elsewhere.yaml")
    assert load(elsewhere).encoder.trust_remote_code
    written(stranger / "config.yaml", base=[str(elsewhere)])
    assert not load(stranger / "config.yaml").encoder.trust_remote_code
    (stranger / "config.yaml").unlink()
    (stranger / "config.yaml").symlink_to(elsewhere)
    assert not load(stranger / "config.yaml").encoder.trust_remote_code


def test_members_that_are_files_ask_in_vain_where_a_stranger_says_so(stranger, tmp_path):
    inside = stranger / "model" / "members" / "one" / "config.yaml"
    elsewhere = (stranger / "again.yaml").rename(tmp_path / "elsewhere.yaml")
    for name, of_mine in (("mine.yaml", True), ("stranger/config.yaml", False)):
        method = {"name": "fusion", "members": {"one": str(inside), "two": str(elsewhere)}}
        path = written(tmp_path / name, data={"name": "tiny"}, method=method)
        stages = stage_configs(load(path))
        assert not stages["one"].encoder.trust_remote_code
        assert stages["two"].encoder.trust_remote_code is of_mine


def test_a_stage_is_trusted_alone(stranger):
    written(stranger / "recipe.yaml", base=["config.yaml"], stages=[ASKS, ASKS])
    words = ["--stages.stage1.encoder.trust_remote_code", "true"]
    stages = stage_configs(load_any_config(stranger / "recipe.yaml", words))
    assert [stage.encoder.trust_remote_code for stage in stages.values()] == [True, False]


def test_modules_that_a_base_in_a_run_folder_names_are_not_imported(
    stranger, tmp_path, monkeypatch
):
    monkeypatch.setattr(plugins, "_allowed", set())
    written(stranger / "config.yaml", data={"name": "tiny"}, method={"name": "evil:Thing"})
    based = written(tmp_path / "based.yaml", base=[str(stranger / "config.yaml")])
    with pytest.raises(ConfigError, match="--plugin evil"):
        load(based)


def test_a_folder_with_a_model_of_ones_own_is_no_run(tmp_path):
    (tmp_path / "model").mkdir()
    assert is_ones_own(tmp_path / "mine.yaml")
    (tmp_path / "config.yaml").touch()
    assert not is_ones_own(tmp_path / "mine.yaml")


def test_a_loop_of_links_is_named(tmp_path):
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(ConfigError, match=r"loop.yaml: cannot be read: Too many levels"):
        load(tmp_path / "loop.yaml")
