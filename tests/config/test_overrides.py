"""Words of the command line: one key of one stage or of all, values read by the type of their
field."""

import argparse
from pathlib import Path

import pytest

from utils.config.command_line import parse_overrides, parse_words
from utils.config.config import SECTIONS, ConfigError, load_config, to_yaml
from utils.config.legacy_yaml import load_any_config
from utils.config.legacy_yaml_keys import NEW_NAMES
from utils.config.legacy_yaml_rules import ELIAS_RULES, HNM_RULES, RULES
from utils.config.methods import METHODS, method_options
from utils.run.stages import member_stages

CONFIGS = Path(__file__).parents[2] / "configs"
STAGED = """
data: {name: D}
method: {name: elias-1, max_leaf: 20}
stages:
- {name: first, train: {epochs: 3}}
- {name: v1.5, method: {name: elias-2}, train: {epochs: 7, batch_size: 8}}
- {name: ranked, method: {name: elias-ranker}}
"""
AS_WRITTEN = [
    "/tmp/a b/run #2",
    "58899e0",
    "0010",
    "12:30",
    "yes",
    "No",
    "Datasets #old",
    "[x]",
    "{a}",
    "a: b",
    "1e-4",
    "  both ends ",
    "2024-01-31",
    "2024-99-99",
    "~",
    "'quoted'",
    '"',
    "*alias",
    "&anchor",
    "!tag",
    "%",
    "- a",
    "3",
    "-7",
    "1_000",
    "0x1F",
    ".5",
    ".nan",
    "=",
    "<<",
    "None",
    "é 漢字",
    "@x",
    "`x`",
    "a\\b",
    "|",
    ">",
    "?",
]


def write(folder, text, name="c.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def load(path, *words, expand=None):
    return load_config(path, words, expand=expand)


@pytest.fixture
def plain(tmp_path):
    return write(tmp_path, "data: {name: D}\nmethod: {name: dexml}\n")


@pytest.fixture
def staged(tmp_path):
    return write(tmp_path, STAGED)


def values(config, stage):
    return next(s for s in config.stages if s["name"] == stage)


# -------------------------------- text


@pytest.mark.parametrize("text", AS_WRITTEN)
def test_text_is_taken_as_it_is_written_and_survives_saving(plain, tmp_path, text):
    config = load(plain, "--run.dir", text, f"--data.root={text}", "--encoder.tokenizer", text)
    assert (config.run.dir, config.data.root, config.encoder.tokenizer) == (text, text, text)
    assert load(write(tmp_path, to_yaml(config), "again.yaml")) == config


def test_null_is_none_where_none_is_allowed(plain):
    config = load(
        plain,
        *(
            word
            for key in ("run.dir", "data.root", "train.patience", "run.expname")
            for word in (f"--{key}", "null")
        ),
    )
    assert config.run.dir is None
    assert config.data.root == "null"
    assert config.train.patience is None
    assert config.run.expname == plain.stem


def test_other_types_read_yaml(plain):
    config = load(
        plain,
        "--optim.lr",
        "1e-3",
        "--eval.ks",
        "[1, 2]",
        "--optim.group_lr",
        "{encoder: 1e-5}",
        "--run.wandb",
        "no",
        "--train.mixed_precision",
        "no",
        "--loss.k",
        "num_pos",
        "--train.epochs=4",
    )
    assert config.optim.lr == 1e-3
    assert config.eval.ks == (1, 2)
    assert dict(config.optim.group_lr) == {"encoder": 1e-5}
    assert config.run.wandb is False
    assert config.train.mixed_precision == "no"
    assert config.loss.k == "num_pos"
    assert config.train.epochs == 4


def test_a_number_or_a_text(plain):
    for word, expected in (
        ("3", 3),
        ("best:first", "best:first"),
        ("best:[x", "best:[x"),
        ("null", None),
    ):
        assert load(plain, "--train.stop_epoch", word).train.stop_epoch == expected
    assert load(plain, "--loss.k", "7").loss.k == 7
    for word in ("1.5", "first", "[x", "0x"):
        with pytest.raises(
            ConfigError,
            match=r"stop_epoch must be a whole number or text that starts with best:, got",
        ):
            load(plain, "--train.stop_epoch", word)
    with pytest.raises(ConfigError, match=r"loss\.k must be whole number or num_pos, got 'all'"):
        load(plain, "--loss.k", "all")


@pytest.mark.parametrize(
    "word",
    ["010", "12:30", "1.5", "three", "", "[3]", "true", "3 4", "9" * 5000, "*a", "2024-01-31"],
)
def test_what_is_no_whole_number_is_refused_as_it_was_written(plain, word):
    with pytest.raises(
        ConfigError, match=r"command line: train\.epochs must be whole number, got '"
    ) as error:
        load(plain, "--train.epochs", word)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("text", ["2024", "5e3", "yes", "1.10", "-3"])
@pytest.mark.parametrize(
    "key", ["run: {expname: %s}", "data: {name: %s}", "method: {name: dexml}\nrun: {dir: %s}"]
)
def test_a_file_needs_quotation_marks_around_text_that_looks_like_a_number(tmp_path, text, key):
    head = "data: {name: D}\n" if "data" not in key else ""
    head += "method: {name: dexml}\n" if "method" not in key else ""
    with pytest.raises(
        ConfigError, match=r"c\.yaml: .* must be text.*; with quotation marks around it, it is text"
    ):
        load(write(tmp_path, head + key % text))
    load(write(tmp_path, head + key % f"'{text}'"))


def test_words_of_a_file_that_are_no_plain_numbers_stay_text(tmp_path):
    for text in ("0010", "12:30", "2024-01-31", "2024-99-99"):
        assert (
            load(write(tmp_path, f"data: {{name: {text}}}\nmethod: {{name: dexml}}\n")).data.name
            == text
        )


@pytest.mark.parametrize("word", ["caf\udce9", "a\0b", "a\nb", "x" * 5000])
def test_text_that_can_be_no_name_is_refused(plain, word):
    with pytest.raises(ConfigError, match=r"command line: run\.dir must be text of"):
        load(plain, "--run.dir", word)


def test_a_word_without_a_value_is_refused():
    for words in (
        ["--train.epochs"],
        ["--epochs", "3"],
        ["train.epochs", "3"],
        ["--train.epochs", "--resume"],
    ):
        with pytest.raises(ConfigError):
            parse_overrides(words)
    assert parse_overrides(["--run.expname=--x"]) == {"run": {"expname": "--x"}}


# -------------------------------- stages


def test_a_word_reaches_one_stage(staged):
    config = load(
        staged,
        "--stages.first.train.epochs",
        "30",
        "--stages.v1.5.method.max_leaf=40",
        "--stages.ranked.run.start_from",
        "stage:first",
        "--stages.v1.5.optim.group_lr",
        "{edges: 1e-3}",
    )
    assert values(config, "first")["train"] == {"epochs": 30}
    assert values(config, "v1.5")["method"] == {"name": "elias-2", "max_leaf": 40}
    assert values(config, "v1.5")["train"] == {"epochs": 7, "batch_size": 8}
    assert values(config, "v1.5")["optim"] == {"group_lr": {"edges": 1e-3}}
    assert values(config, "ranked")["run"] == {"start_from": "stage:first"}
    assert config.train.epochs == load(staged).train.epochs


def test_text_of_a_stage_is_taken_as_it_is_written(staged, tmp_path):
    config = load(
        staged,
        "--stages.first.method.graph",
        "my #1 graph.npz",
        "--stages.ranked.run.start_from",
        "0010",
    )
    assert values(config, "first")["method"]["graph"] == "my #1 graph.npz"
    assert values(config, "ranked")["run"]["start_from"] == "0010"
    assert load(write(tmp_path, to_yaml(config), "again.yaml")).stages == config.stages


def test_a_stages_method_has_its_own_options(staged):
    config = load(
        staged,
        "--stages.ranked.method.candidates",
        "9",
        "--stages.first.method.name",
        "elias-2",
        "--stages.first.method.edge_init",
        "equal",
    )
    assert values(config, "ranked")["method"]["candidates"] == 9
    assert values(config, "first")["method"] == {"name": "elias-2", "edge_init": "equal"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stages.frist.train.epochs", "3"], "there is no stage 'frist'; did you mean 'first'?"),
        (
            ["--stages.first.train.epoch", "3"],
            "stages.first: unknown key 'train.epoch'; did you mean 'epochs'?",
        ),
        (
            ["--stages.first.trian.epochs", "3"],
            "stages.first: unknown section 'trian'; did you mean 'train'?",
        ),
        (
            ["--stages.first.train.epochs", "x"],
            "stages.first: train.epochs must be whole number, got 'x'",
        ),
        (
            ["--stages.first.train.epochs", "-1"],
            "stages.first: train.epochs must be at least 0, got -1",
        ),
        (["--stages.ranked.method.max_leaf", "3"], "stages.ranked: unknown key 'method.max_leaf'"),
        (["--stages.first.method.name", "elais-2"], "stages.first: unknown method.name 'elais-2'"),
        (
            ["--stages.first.run.dir", "x"],
            "stage 'first' sets run.dir, but all stages lie in one run folder",
        ),
        (
            ["--stages.first", "x"],
            "expected --section.key VALUE or --stages.NAME.section.key VALUE, got '--stages.first'",
        ),
    ],
)
def test_a_wrong_word_for_a_stage_is_one_clear_error(staged, words, message):
    with pytest.raises(ConfigError) as error:
        load(staged, *words)
    assert message in str(error.value)
    assert "command line" in str(error.value)


def test_a_config_without_stages_says_so(plain, tmp_path):
    flat = write(tmp_path, "net: dist-clf-net\ndataset: D\n", "flat.yaml")
    for load_one, path in ((load_config, plain), (load_any_config, flat)):
        with pytest.raises(ConfigError, match=r"there is no stage 'a'; the config has no stages"):
            load_one(path, ["--stages.a.train.epochs", "3"])


@pytest.mark.parametrize(
    ("config", "words", "lost"),
    [
        (
            "LF-AmazonTitles-131K/dexa",
            ["--train.epochs", "2"],
            {"classifiers": "100", "fused": "0"},
        ),
        ("LF-Wikipedia-500K/ngame", ["--optim.warmup", "7"], {"classifiers": "500"}),
        ("amazon-670k/elias", ["--method.max_leaf", "50"], {"stage-2": "100"}),
        ("LF-DebianTitles-small/fusion", ["--data.val_fraction", "0.1"], {"encoder-all": "0"}),
        ("LF-DebianTitles-small/fusion", ["--run.start_from", "RUN"], {"soft": "None"}),
        ("eurlex-4k-pecos/overlap-dense", ["--method.name", "dexml"], {"tree": "'overlap'"}),
    ],
)
def test_a_word_that_some_stage_would_not_take_is_refused(config, words, lost):
    with pytest.raises(ConfigError) as error:
        load(CONFIGS / f"{config}.yaml", *words)
    for stage, value in lost.items():
        assert f"{stage} ({value}" in str(error.value)
        assert f"--stages.{stage}.{words[0][2:]} {words[1]}" in str(error.value)


def test_a_word_that_all_stages_take_is_fine(staged):
    assert load(staged, "--train.eval_interval", "5", "--optim.lr", "3e-4").train.eval_interval == 5
    # what a stage of another method has anyway
    assert load(staged, "--method.K", "2000").method.K == 2000
    assert load(staged, "--method.kappa", "7", "--stages.v1.5.method.kappa", "8").method.kappa == 7
    config = load(
        staged,
        "--train.epochs",
        "2",
        "--stages.first.train.epochs",
        "2",
        "--stages.v1.5.train.epochs",
        "5",
    )
    assert config.train.epochs == 2


def test_an_option_of_a_stages_method_alone_is_pointed_out(staged):
    with pytest.raises(
        ConfigError, match=r"of stage ranked has: --stages\.ranked\.method\.candidates 3"
    ):
        load(staged, "--method.candidates", "3")


def test_stages_made_of_a_fusions_members_take_words_too(tmp_path):
    write(tmp_path, "data: {name: D}\nmethod: {name: xr-linear}\n", "linear.yaml")
    write(tmp_path, STAGED, "graph.yaml")
    path = write(
        tmp_path,
        f"data: {{name: D}}\nmethod: {{name: fusion, members: {{lin: {tmp_path / 'linear.yaml'}, "
        f"graph: {tmp_path / 'graph.yaml'}}}}}\n",
        "fusion.yaml",
    )

    def expand(config, own):
        return member_stages(config)

    config = load(
        path,
        "--stages.lin.method.cost",
        "2",
        "--stages.graph-first.train.epochs",
        "9",
        "--run.seed",
        "4",
        "--stages.fusion.method.candidates",
        "30",
        expand=expand,
    )
    assert [stage["name"] for stage in config.stages] == [
        "lin",
        "graph-first",
        "graph-v1.5",
        "graph",
        "fusion",
    ]
    assert values(config, "lin")["method"]["cost"] == 2.0
    assert values(config, "graph-first")["train"]["epochs"] == 9
    assert values(config, "fusion")["method"]["candidates"] == 30
    with pytest.raises(ConfigError, match=r"--stages\.lin\.train\.epochs 2"):
        load(path, "--train.epochs", "2", expand=expand)


def test_a_stage_says_nothing_that_is_not_used(tmp_path):
    head = "data: {name: D}\nmethod: {name: dexml}\n"
    for stage, message in (
        ("{name: a, run: {expname: x}}", r"stage 'a' sets run\.expname"),
        ("{name: a, base: x.yaml}", "stage 'a': unknown section 'base'"),
        ("{name: a, stages: []}", "stage 'a': unknown section 'stages'"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(write(tmp_path, f"{head}stages: [{stage}]\n"))


def test_stages_of_a_base_are_kept_wherever_it_stands(tmp_path):
    write(tmp_path, "data: {name: D}\n", "data.yaml")
    write(tmp_path, "method: {name: dexml}\nstages: [{name: a}, {name: b}]\n", "recipe.yaml")
    for order in ("data.yaml, recipe.yaml", "recipe.yaml, data.yaml"):
        assert [s["name"] for s in load(write(tmp_path, f"base: [{order}]\n")).stages] == ["a", "b"]
    assert load(write(tmp_path, "base: [recipe.yaml, data.yaml]\nstages: []\n")).stages == ()


# -------------------------------- hints


def refusal(capsys, *words):
    parser = argparse.ArgumentParser(prog="train.py", allow_abbrev=False)
    parser.add_argument("config")
    parser.add_argument("--resume", action="store_true")
    with pytest.raises(SystemExit):
        parse_words(parser, words)
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["c.yaml", "--num_epochs", "5"], "write --train.epochs 5"),
        (["--bsz", "64", "c.yaml"], "write --train.batch_size 64"),
        (["c.yaml", "--lr=0.001", "--resume"], "write --optim.lr 0.001"),
        (["c.yaml", "--tf_max_len", "64", "--expname", "a b"], "write --run.expname 'a b'"),
        (["c.yaml", "--patience", "3"], "write --train.patience 3"),
        (["c.yaml", "--max_leaf", "50"], "write --method.max_leaf 50"),
        (
            ["c.yaml", "--nonsense", "3"],
            "unknown option --nonsense; keys of a config are given as --section.key VALUE",
        ),
        (["a.yaml", "b.yaml", "c.yml"], "`base: [a.yaml, b.yaml, c.yml]`"),
        (["c.yaml", "train.epochs=3"], "write --train.epochs 3"),
        (["c.yaml", "more"], "unexpected words: more"),
    ],
)
def test_flat_words_and_several_files_are_told_what_to_write(capsys, words, hint):
    assert hint in refusal(capsys, *words)


def test_every_new_name_is_a_key():
    kinds = [method_options(name) for name in METHODS]
    for old, place in NEW_NAMES.items():
        section, key = place.split(".")
        sections = kinds if section == "method" else [SECTIONS[section]]
        assert any(key in kind.__dataclass_fields__ for kind in sections), old
    assert {*RULES, *HNM_RULES, *ELIAS_RULES} - {*NEW_NAMES} == set()
