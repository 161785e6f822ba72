"""docs/coming-from.md: every command of ours can be typed; the released encoders come out as
published."""

import re
import shlex
import sys
from pathlib import Path

import pytest

import elias_utils
import eval as evaluation
import train
from engine.conformance.made import write_dataset
from tests.config.released_json import DEXA, written
from utils.config.config import Config
from utils.config.legacy_yaml import load_any_config
from utils.prepare.command import _parser as prepare_parser
from utils.pretrained.source import resolve_encoder

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
OURS = re.compile(r"(?:python|accelerate launch) ")


def commands() -> list[str]:
    """Of code blocks and code spans; what has a `${...}` is theirs."""
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", PAGE, flags=re.DOTALL | re.MULTILINE)
    found = [line for block in blocks for line in block.splitlines()] + re.findall(
        r"`([^`]+)`", prose
    )
    return [command for command in found if OURS.match(command) and "${" not in command]


def script(command: str) -> tuple[str, list[str]]:
    """(script or `-m module`, its words); the launcher is taken off."""
    words = shlex.split(command)
    if words[0] == "accelerate":
        assert Path(ROOT / words[words.index("--config_file") + 1]).is_file()
        place = next(i for i, word in enumerate(words) if word.endswith(".py"))
    else:
        place = 1
    if words[place] == "-m":
        return f"-m {words[place + 1]}", words[place + 2 :]
    return words[place], words[place + 1 :]


def parsed(monkeypatch, module, words: list[str]):
    monkeypatch.setattr(sys, "argv", [module.__name__, *words])
    return module.parse_arguments()


@pytest.fixture
def configs(tmp_path) -> dict[str, Path]:
    """Files of the user's that the page names."""
    return {"config/DEXA/LF-AmazonTitles-131K.json": written(tmp_path / "DEXA", DEXA)}


def trained(command: str, monkeypatch, configs) -> Config:
    options, overrides = parsed(monkeypatch, train, script(command)[1])
    path = configs.get(options.config, ROOT / options.config)
    return load_any_config(path, overrides)


def test_there_are_commands():
    scripts = {script(command)[0] for command in commands()}
    assert scripts == {
        "train.py",
        "eval.py",
        "elias_utils.py",
        "-m utils.prepare",
        "-m utils.metrics",
        "-m benchmarks.overlap",
    }
    assert len(commands()) >= 35


@pytest.mark.parametrize("command", [c for c in commands() if script(c)[0] == "train.py"])
def test_train(command, monkeypatch, configs):
    assert trained(command, monkeypatch, configs).data.name in command


def test_runs_that_are_named_are_those_that_the_page_has_trained(monkeypatch, configs):
    runs = {
        str(trained(c, monkeypatch, configs).run_folder)
        for c in commands()
        if script(c)[0] == "train.py"
    }
    for command in commands():
        name, words = script(command)
        if name == "eval.py":
            run = parsed(monkeypatch, evaluation, words)[0].run
        elif name == "elias_utils.py":
            run = parsed(monkeypatch, elias_utils, words)[0].run
        elif name == "-m benchmarks.overlap":
            (run,) = words
        else:
            continue
        config = ROOT / run
        folder = str(load_any_config(config).run_folder) if config.is_file() else run
        assert folder.removesuffix("/config.yaml") in runs, command


def test_prepare():
    made = {
        prepare_parser().parse_args(words).out
        for name, words in map(script, commands())
        if name == "-m utils.prepare"
    }
    made.discard("Datasets/NAME")  # any name
    assert all((ROOT / "configs" / Path(out).name).is_dir() for out in made)
    assert len(made) >= 4


@pytest.mark.parametrize("line", [line for line in PAGE.splitlines() if "quicktensor/" in line])
def test_released_encoders(line, monkeypatch, configs, tiny_encoder):
    """A local transformer stands in for the id: a plain one says nothing, the config says what
    METHODS 1.4 has."""
    name, ident, _, command = (cell.strip(" `") for cell in line.strip("|").split("|"))
    assert ident.removeprefix("quicktensor/dexml_") == name.lower()
    config = trained(command.replace(ident, tiny_encoder), monkeypatch, configs)
    assert f"--encoder.name {ident} " in command
    assert (config.data.name, config.train.epochs, config.method.name) == (name, 0, "dexml")
    encoder = resolve_encoder(config.encoder)
    normalized = name in ("EURLex-4K", "LF-AmazonTitles-131K")
    assert (encoder.name, encoder.pooling, encoder.projection) == (tiny_encoder, "cls", None)
    assert encoder.normalize is normalized
    assert config.method.tau == (0.05 if normalized else 1.0)


def test_a_released_encoder_is_evaluated(monkeypatch, configs, tiny_encoder, tmp_path):
    """The page's command on a small set of that name: no epoch, then test scores of the encoder as
    it is."""
    write_dataset(tmp_path / "EURLex-4K", points=40, labels=12)
    command = next(c for c in commands() if "dexml_eurlex-4k" in c and "--train.epochs 0" in c)
    command = command.replace("quicktensor/dexml_eurlex-4k", tiny_encoder)
    config = trained(
        f"{command} --data.root {tmp_path} --run.root {tmp_path} --data.max_len 16 --eval.top_k "
        "10 --train.mixed_precision no",
        monkeypatch,
        configs,
    )
    run = train.fit(config)
    assert run == tmp_path / "DEXML" / "EURLex-4K" / "released"
    assert 0 <= evaluation.evaluate(run)["P@1"] <= 100
