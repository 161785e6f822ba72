import re
import subprocess
import sys
from pathlib import Path

import pytest

from utils.config.__main__ import main as config_command
from utils.config.config import (
    ConfigError,
    build_config,
    describe,
    load_config,
    split_words,
    stage_config,
    to_yaml,
)
from utils.config.methods import METHODS, known_methods, method_lines, method_options
from utils.config.yaml_text import parse_yaml

ROOT = Path(__file__).parents[2]
PRESETS = ROOT / "configs" / "presets"  # for any data set
CONFIGS = [
    p
    for p in sorted((ROOT / "configs").rglob("*.yaml"))
    if p.name != "dataset.yaml" and p.parent not in (ROOT / "configs", PRESETS)
]

KNOWN = known_methods()


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def load(path, *words):
    return load_config(path, words)


@pytest.fixture
def plain(tmp_path):
    return write(tmp_path, "plain.yaml", "data: {name: D}\nmethod: {name: dexml}\n")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_shipped_config_loads_and_survives_saving(path, tmp_path):
    config = load(path)
    assert config.data.name == path.parent.name
    assert config.run.expname == path.stem
    assert load(write(tmp_path, "again.yaml", to_yaml(config))) == config


def test_no_shipped_config_is_missed():
    names = {f"{p.parent.name}/{p.stem}" for p in CONFIGS}
    small = {
        f"LF-DebianTitles-small/{n}"
        for n in (
            "dexml",
            "dexml-hnm",
            "dexml-softmax",
            "dexml-topk",
            "dexml-minilm",
            "ova",
            "ngame",
            "dexa",
            "siamesexml",
            "dexml-aux",
        )
    }
    small |= {f"LF-DebianTitles/{n}" for n in ("ngame", "dexa", "siamesexml")} | {
        "Debtags/dexa",
        "Debtags/deepxml",
    }
    all_losses = (
        "dist-de-all_decoupled-softmax",
        "dist-de-all_softmax",
        "dist-de-all_topk",
        "dist-de-hnm_decoupled-softmax",
    )
    published = {f"{d}/{n}" for d in ("EURLex-4K", "LF-AmazonTitles-131K") for n in all_losses}
    published |= {
        "LF-AmazonTitles-1.3M/dist-de-all_decoupled-softmax",
        "LF-Wikipedia-500K/" + all_losses[0],
        "LF-Wikipedia-500K/" + all_losses[3],
    }
    published |= {
        f"{d}/{n}"
        for d in (
            "LF-AmazonTitles-131K",
            "LF-AmazonTitles-1.3M",
            "LF-Wikipedia-500K",
            "LF-WikiSeeAlso-320K",
        )
        for n in ("ngame", "dexa")
    }
    trees = {
        f"{d}/{n}"
        for d in ("LF-DebianTitles-small", "LF-DebianTitles", "Debtags")
        for n in ("xr-linear", "forest", "overlap", "overlap-dense")
    }
    trees |= {
        f"{d}/{n}"
        for d in (
            "eurlex-4k-pecos",
            "wiki10-31k",
            "amazoncat-13k",
            "amazon-670k",
            "wiki-500k",
            "amazon-3m",
        )
        for n in ("xr-linear", "overlap", "overlap-dense")
    }
    elias = {
        f"{d}/{n}"
        for d in (
            "LF-DebianTitles-small",
            "LF-DebianTitles",
            "Debtags",
            "amazon-670k",
            "wiki-500k",
            "LF-AmazonTitles-131K",
            "amazon-3m",
        )
        for n in ("elias", "elias-1", "elias-2")
    }
    elias |= {"LF-DebianTitles/dexml", "Debtags/dexml"}
    fusions = {f"{d}/fusion" for d in ("LF-DebianTitles-small", "LF-DebianTitles", "Debtags")}
    fusions.add("LF-DebianTitles-small/fusion-minilm")
    assert names == small | published | trees | elias | fusions
    assert len(CONFIGS) == 91


def test_bases_merge_in_order_and_the_file_wins(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path, "a.yaml", "data: {name: A, max_len: 10}\ntrain: {epochs: 1, batch_size: 7}\n")
    write(tmp_path, "b.yaml", "base: a.yaml\ntrain: {epochs: 2}\n")
    path = write(
        tmp_path / "sub",
        "c.yaml",
        "base: [../a.yaml, ../b.yaml]\nmethod: {name: dexml}\ndata: {name: C}\n",
    )
    config = load(path, "--train.batch_size", "9", "--optim.lr=1e-3")
    assert (
        config.data.name,
        config.data.max_len,
        config.train.epochs,
        config.train.batch_size,
    ) == ("C", 10, 2, 9)
    assert config.optim.lr == 1e-3


def test_numbers_without_a_point_are_numbers(tmp_path):
    path = write(
        tmp_path, "c.yaml", "data: {name: D}\nmethod: {name: dexml}\noptim: {lr: 1e-4, eps: 1E-7}\n"
    )
    config = load(path)
    assert (config.optim.lr, config.optim.eps) == (1e-4, 1e-7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "data: {name: D}\nmethod: {name: dexml}\ntrain: {epoch: 3}\n",
            "unknown key 'train.epoch'; did you mean 'epochs'",
        ),
        (
            "data: {name: D}\nmethod: {name: dexml, tua: 3}\n",
            "unknown key 'method.tua'; did you mean 'tau'",
        ),
        ("data: {name: D}\nmethod: {name: dexm}\n", f"unknown method.name 'dexm'; known: {KNOWN}"),
        ("dat: {name: D}\nmethod: {name: dexml}\n", "unknown section 'dat'; did you mean 'data'"),
        (
            "data: {name: D}\nmethod: {name: dexml}\ntrain: {epochs: three}\n",
            "must be whole number, got 'three'",
        ),
        (
            "data: {name: D}\nmethod: {name: dexml}\ntrain: {epochs: 1.5}\n",
            "train.epochs must be whole number, got 1.5",
        ),
        (
            "data: {name: D}\nmethod: {name: dexml}\ntrain: {epochs: true}\n",
            "train.epochs must be whole number, got True",
        ),
        (
            "data: {name: D}\nmethod: {name: dexml}\noptim: {lr: -1}\n",
            "optim.lr must be at least 0, got -1.0",
        ),
        (
            "data: {name: D}\nmethod: {name: dexml}\noptim: {lr: .nan}\n",
            "optim.lr must be a finite number",
        ),
        (
            "data: {name: D}\nmethod: {name: dexml}\nloss: {name: sofmax}\n",
            "loss.name must be one of softmax, decoupled",
        ),
        ("method: {name: dexml}\n", "data.name is missing"),
        (
            "data: {name: D}\nmethod: {name: dexml}\ndata: {name: E}\n",
            "line 3: the key 'data' stands twice",
        ),
        ("data: [D]\n", "section 'data' must be a mapping"),
        ("- a\n", "expected a mapping of sections, got list"),
        ("data: {name: D\n", "not valid YAML"),
        ("base: [c.yaml]\ndata: {name: D}\n", "goes in a circle"),
        ("base: [none.yaml]\n", "none.yaml: no such config file"),
        ("data: {name: D}\nmethod: {name: dexml}\nstages: 3\n", "`stages:` must be a list"),
        (
            "data: {name: D}\nmethod: {name: dexml}\nstages: [{train: {epoch: 3}}]\n",
            "stage 'stage1': unknown key",
        ),
        (
            "data: {name: D}\nmethod: {name: dexml}\nstages: [{name: a}, {name: a}]\n",
            "stage names must be distinct",
        ),
    ],
)
def test_bad_configs_get_one_clear_error(tmp_path, text, message):
    path = write(tmp_path, "c.yaml", text)
    with pytest.raises(ConfigError) as error:
        load(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_errors_name_the_file_that_wrote_the_key(tmp_path):
    write(tmp_path, "base.yaml", "data: {name: D}\ntrain: {epoks: 1}\n")
    path = write(tmp_path, "c.yaml", "base: base.yaml\nmethod: {name: dexml}\n")
    with pytest.raises(ConfigError, match=r"base\.yaml: unknown key 'train\.epoks'"):
        load(path)
    with pytest.raises(ConfigError, match=r"command line: unknown key 'train\.foo'"):
        load(
            write(tmp_path, "base.yaml", "data: {name: D}\nmethod: {name: dexml}\n"),
            "--train.foo",
            "1",
        )


def test_yaml_no_is_a_precision_not_false(plain):
    assert load(plain, "--train.mixed_precision", "no").train.mixed_precision == "no"
    assert load(plain, "--loss.k", "num_pos").loss.k == "num_pos"


def test_sections_are_frozen(plain):
    config = load(plain)
    with pytest.raises(AttributeError):
        config.train.epochs = 3


def test_run_folder(plain, tmp_path):
    assert load(plain).run_folder == Path("Results/XMCKit/D/plain")
    assert load(
        plain, "--run.root", "R", "--run.project", "P", "--run.expname", "E"
    ).run_folder == Path("R/P/D/E")
    assert load(plain, "--run.dir", str(tmp_path)).run_folder == tmp_path


def test_a_stage_with_another_method_starts_from_that_methods_defaults(plain):
    config = load(plain, "--method.tau", "0.5", "--train.epochs", "3")
    stage = stage_config(
        config, {"name": "x", "method": {"name": "ova"}, "train": {"batch_size": 4}}
    )
    assert stage.method == method_options("ova")(name="ova")
    assert (stage.train.epochs, stage.train.batch_size) == (3, 4)
    same = stage_config(config, {"name": "y", "method": {"pool": "hnm"}})
    assert (same.method.tau, same.method.pool) == (0.5, "hnm")


def test_every_key_is_described():
    text = describe()
    assert "batch_size" in text
    assert "method (dexml)" in text
    for line in text.splitlines():
        if line.startswith("  ") and not line.startswith("  name"):
            assert not line.rstrip().endswith(":"), f"no meaning given: {line}"


def test_sections_and_methods_are_described_alone():
    text = describe(["data", "ova"])
    assert [line for line in text.splitlines() if not line.startswith(" ")] == [
        "data:",
        "method (ova):",
    ]
    titles = [line for line in describe(["method"]).splitlines() if not line.startswith(" ")]
    assert titles == [f"method ({name}):" for name in sorted(METHODS)]
    with pytest.raises(
        ConfigError, match="no section or method 'xr-liner'; did you mean 'xr-linear'"
    ):
        describe(["xr-liner"])


def test_every_method_says_what_it_is():
    lines = method_lines(sorted(METHODS)).splitlines()
    assert [line.split()[0] for line in lines] == sorted(METHODS)
    assert all(len(method.about) > 20 for method in METHODS.values())
    assert [name for name, method in METHODS.items() if not method.paper] == ["fusion"]
    told = describe(["xr-linear"]).splitlines()
    assert told[1:3] == [
        f"  # {METHODS['xr-linear'].about}",
        "  # PECOS: Yu et al., JMLR 2022, arXiv 2010.05878",
    ]


def test_a_file_is_told_with_every_key_resolved(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text("data: {name: D}\nmethod: {name: ova}\n")
    config_command([str(path), "--optim.lr", "0.5"])
    text = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(text)
    again = load_config(tmp_path / "again.yaml")
    assert again == load_config(path, ["--optim.lr", "0.5"])
    config_command([str(path), "loss", "optim"])
    assert [*parse_yaml(capsys.readouterr().out, "it")] == ["loss", "optim"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["xr-liner"], "no section, method or file 'xr-liner'; did you mean 'xr-linear'"),
        (["method", "optin"], "no section, method or file 'optin'; did you mean 'optim'"),
        (["no/such.yaml"], "no/such.yaml"),
        (["{file}", "lost"], "the config has no section 'lost'; did you mean 'loss'"),
        (["data", "--optim.lr", "1"], "--optim.lr goes with a file"),
        (["bets"], "no section, method or file 'bets'; did you mean 'best'"),
        (["best"], "data.name is missing"),
    ],
)
def test_what_cannot_be_told_is_one_line(tmp_path, words, message):
    path = tmp_path / "c.yaml"
    path.write_text("data: {name: D}\nmethod: {name: ova}\n")
    with pytest.raises(SystemExit, match=f"error: .*{re.escape(message)}"):
        config_command([word.format(file=path) for word in words])


def test_a_preset_that_is_called_as_a_section_is_told_where_it_is_given_values(tmp_path, capsys):
    config_command(["encoder", "--data.name", "D", "--data.root", str(tmp_path)])
    assert "method:\n  name: dexa" in capsys.readouterr().out


def test_methods_are_listed(capsys):
    config_command(["methods"])
    assert capsys.readouterr().out.rstrip("\n") == method_lines(sorted(METHODS))


def test_a_misspelt_method_name_is_shown(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("data: {name: D}\nmethod: {nmae: ova}\n")
    with pytest.raises(ConfigError, match="method.name is missing \\(there is 'nmae'\\); known: "):
        load(path)


def test_the_page_s_config_of_own_data_asks_for_no_filter_files(tmp_path):
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    content = text.partition("```yaml\n")[2].partition("\n```")[0]
    path = tmp_path / "mine.yaml"
    path.write_text(content.replace("[configs/", f"[{ROOT}/configs/"))
    config = load(path)
    assert (config.data.name, config.data.filters) == ("Mine", "optional")


def test_words_may_come_in_any_order():
    words = ["--train.epochs", "3", "c.yaml", "--run.seed=1", "--resume"]
    assert split_words(words) == (["c.yaml", "--resume"], ["--train.epochs", "3", "--run.seed=1"])


def test_run_names_are_plain(plain):
    for name in ("../x", "a/b", ".hidden"):
        with pytest.raises(ConfigError, match="run.expname must be a plain folder name"):
            load(plain, "--run.expname", name)


def test_build_config_needs_a_known_method():
    with pytest.raises(ConfigError, match=f"method.name is missing; known: {KNOWN}"):
        build_config({"data": {"name": "D"}}, {})


def test_config_imports_quickly_and_without_torch():
    code = (
        "import sys, time; t = time.perf_counter(); import utils.config.config; "
        "print(time.perf_counter() - t); "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    got = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert float(got.stdout) < 0.5


SCRIPTS = ("train.py", "eval.py", "predict.py", "elias_utils.py")
MODULES = ("config", "export", "features", "prepare", "report")


@pytest.mark.parametrize("words", [*SCRIPTS, *(f"-m utils.{module}" for module in MODULES)])
def test_help_is_instant(words):
    """Nothing that takes long to import is imported for it."""
    run = "run_module" if words.startswith("-m") else "run_path"
    code = (
        "import atexit, runpy, sys; name = sys.argv[-1]; sys.argv = [name, '--help']; "
        "heavy = {'torch', 'transformers', 'sklearn', 'numba'}; "
        "atexit.register(lambda: print('imported', heavy & set(sys.modules))); "
        f"runpy.{run}(name, run_name='__main__')"
    )
    got = subprocess.run(
        [sys.executable, "-c", code, *words.split()],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert got.returncode == 0, got.stderr
    assert "usage" in got.stdout
    assert "imported set()" in got.stdout
