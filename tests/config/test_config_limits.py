"""Configs that are broken, hostile or absurd: each is refused in one line, at once, by what can be
read before anything is built."""

import dataclasses
import itertools
import os
import random
import textwrap
import time
import typing
from pathlib import Path

import pytest
import yaml

from utils.config.config import (
    MAX_FILES,
    MAX_STAGES,
    SECTIONS,
    ConfigError,
    build_config,
    load_config,
    to_yaml,
)
from utils.config.legacy_yaml import load_any_config
from utils.config.legacy_yaml_files import interpolate
from utils.config.methods import METHODS, method_options
from utils.config.yaml_text import MAX_CHARACTERS, MAX_DEPTH, dump_yaml, parse_yaml, read_yaml
from utils.run.stages import member_stages

CONFIGS = [
    path
    for path in sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
    if path.parent.name != "presets"  # which are of no data set
]
HEAD = "data: {name: D}\nmethod: {name: dexml}\n"
KINDS = {**SECTIONS, **{name: method_options(name) for name in METHODS}}


def write(folder, text, name="c.yaml"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def load(path, *words):
    return load_any_config(
        path,
        words,
        expand=member_stages,
    )


def refusal(path, *words):
    """The message of the refusal, which is one line, names where it comes from, and comes within a
    second."""
    started = time.perf_counter()
    with pytest.raises(ConfigError) as error:
        load(path, *words)
    assert time.perf_counter() - started < 2
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 1500
    assert ("command line" if words else str(path.parent)) in message
    return message


# -------------------------------- a range for every number


def numbers(kind):
    """Fields of a section that hold numbers, alone or in lists and maps."""

    def holds(hint):
        return hint in (int, float) or any(holds(part) for part in typing.get_args(hint))

    hints = typing.get_type_hints(kind)
    return [field for field in dataclasses.fields(kind) if holds(hints[field.name])]


@pytest.mark.parametrize("name", KINDS)
def test_every_number_has_a_lowest_and_a_highest_value(name):
    for field in numbers(KINDS[name]):
        limits = field.metadata["limits"]
        assert {"ge", "gt"} & set(limits), f"{name}.{field.name} has no lower limit"
        assert {"le", "lt"} & set(limits), f"{name}.{field.name} has no upper limit"
        default = field.default
        values = default if isinstance(default, tuple) else (default,)
        for value in values:
            if isinstance(value, (int, float)):
                assert (
                    limits.get("ge", limits.get("gt"))
                    <= value
                    <= limits.get("le", limits.get("lt"))
                )


@pytest.mark.parametrize(
    ("section", "name"),
    [*((s, "dexml") for s in SECTIONS if s != "method"), *(("method", m) for m in METHODS)],
)
def test_no_number_beyond_its_range_is_taken(tmp_path, section, name):
    path = write(tmp_path, f"data: {{name: D}}\nmethod: {{name: {name}}}\n")
    kind = KINDS[name if section == "method" else section]
    for field in numbers(kind):
        hint = str(typing.get_type_hints(kind)[field.name])
        form = "[%s]" if hint.startswith("tuple") else "{a: %s}" if "Mapping" in hint else "%s"
        for number in (
            "-1e300",
            "1e300",
            "1" + 30 * "0",
            "-" + "9" * 20,
            ".nan",
            ".inf",
            "-.inf",
            "9" * 400,
        ):
            message = refusal(path, f"--{section}.{field.name}", form % number)
            assert f"{section}.{field.name} must be" in message


@pytest.mark.parametrize(
    ("word", "value", "limit"),
    [
        ("data.workers", "1000", "at most 256"),
        ("run.threads", "1000000", "at most 1,024"),
        ("method.trees", "1000000000", "at most 1,000"),
        ("train.epochs", "1" + 30 * "0", "at most 1,000,000"),
        ("method.beam", "1000000000", "at most 1,000,000"),
        ("data.max_len", "1" + 30 * "0", "at most 1,000,000"),
        ("eval.ks", "[1, 0]", "at least 1"),
        ("optim.group_lr", "{table: -1}", "at least 0"),
        ("run.seed", "-1", "at least 0"),
        ("optim.lr", ".nan", "a finite number"),
    ],
)
def test_the_error_says_the_limit_and_what_came(tmp_path, word, value, limit):
    message = refusal(
        write(tmp_path, "data: {name: D}\nmethod: {name: overlap}\n"), f"--{word}", value
    )
    assert f"command line: {word} must be {limit}, got " in message


def test_a_temperature_too_small_to_divide_by(tmp_path):
    for method, key in (
        ("dexml", "tau"),
        ("ova", "tau"),
        ("elias-1", "cluster_tau"),
        ("fusion", "memory_tau"),
    ):
        path = write(tmp_path, f"data: {{name: D}}\nmethod: {{name: {method}}}\n")
        assert f"method.{key} must be at least 1e-06, got 1e-300" in refusal(
            path, f"--method.{key}", "1e-300"
        )


# -------------------------------- size


def bomb(levels=12, width=9, merge=False):
    """Each level names the one before it so many times."""
    if merge:
        lines = ["a0: &a0 {x: 1}"] + [
            f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * width)}], k{i}: 1}}"
            for i in range(1, levels)
        ]
    else:
        lines = ["a0: &a0 [x, y, z]"] + [
            f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)
        ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize(("levels", "width"), [(12, 9), (40, 2), (4, 200)])
def test_aliases_that_expand_without_end(tmp_path, merge, levels, width):
    text = bomb(levels, width, merge)
    for place in (
        HEAD + text,
        HEAD + "train:\n" + textwrap.indent(text, "  "),
        f"base: bomb.yaml\n{HEAD}",
    ):
        write(tmp_path, text, "bomb.yaml")
        message = refusal(write(tmp_path, place))
        assert "aliases expanded" in message
    flow = "{" + text.strip().replace("\n", ", ") + "}"
    assert "train.epochs must be whole number" in refusal(
        write(tmp_path, HEAD), "--train.epochs", flow
    )
    message = refusal(write(tmp_path, HEAD), "--optim.group_lr", flow)
    assert "optim.group_lr must be mapping" in message
    assert "aliases expanded" in message


def test_an_alias_inside_what_it_names(tmp_path):
    assert "*a stands inside &a" in refusal(write(tmp_path, HEAD + "loss: &a {name: *a}\n"))
    assert "there is no such anchor" in refusal(write(tmp_path, HEAD + "loss: {name: *b}\n"))


def test_aliases_and_merges_of_a_sane_size_are_fine(tmp_path):
    text = (
        HEAD + "stages:\n- &a\n  name: a\n  train: {epochs: 3}\n  method: &m {tau: 2}\n"
        "- {<<: *a, name: b, method: {<<: *m, tau: 3}}\n- {<<: [*a], name: c}\n"
    )
    stages = load(write(tmp_path, text)).stages
    assert [(s["name"], s["train"]["epochs"], s["method"]["tau"]) for s in stages] == [
        ("a", 3, 2),
        ("b", 3, 3),
        ("c", 3, 2),
    ]


def test_a_merged_mapping_that_overrides_a_key_may_be_merged_again_anywhere():
    text = "deep: [{x: &b {<<: {k: 1}, k: 2}}]\nflat: {<<: *b, l: 3}\n"
    assert parse_yaml(text, "here") == {"deep": [{"x": {"k": 2}}], "flat": {"k": 2, "l": 3}}


def test_files_that_are_too_large_or_never_end(tmp_path):
    assert f"more than {MAX_CHARACTERS:,} bytes" in refusal(
        write(tmp_path, HEAD + "#" * MAX_CHARACTERS)
    )
    assert "characters of values" in refusal(
        write(tmp_path, HEAD + f"loss: [{'a, ' * (MAX_CHARACTERS // 6)}]")
    )
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, what in (
        ("/dev/zero", "no regular file"),
        ("pipe", "no regular file"),
        (".", "a folder"),
        ("loop", "cannot be read"),
        ("c.yaml/x", "cannot be read"),
        ("x" * 300, "cannot be read"),
    ):
        assert what in refusal(write(tmp_path, f"base: {name}\n{HEAD}"))
    with pytest.raises(ConfigError, match="/dev/zero: expected a config file, got no regular file"):
        read_yaml("/dev/zero")


def test_bases_that_fan_out_and_those_that_go_round(tmp_path):
    for level in range(40):
        write(tmp_path, f"base: [b{level + 1}.yaml, b{level + 1}.yaml]\n", f"b{level}.yaml")
    write(tmp_path, HEAD, "b40.yaml")
    assert f"leads to more than {MAX_FILES} files" in refusal(tmp_path / "b0.yaml")
    for name, after in (("x", "y"), ("y", "z"), ("z", "x")):
        write(tmp_path, f"base: {after}.yaml\n", f"{name}.yaml")
    assert "`base:` goes in a circle" in refusal(tmp_path / "x.yaml")


def test_flat_files_have_the_same_limits(tmp_path):
    for level in range(40):
        write(
            tmp_path,
            f"dataset: D\n__dependency__: f{level + 1}.yaml, f{level + 1}.yaml\n",
            f"f{level}.yaml",
        )
    write(tmp_path, "net: dist-clf-net\ndataset: D\n", "f40.yaml")
    assert f"leads to more than {MAX_FILES} files" in refusal(tmp_path / "f0.yaml")
    keys = [f"key{i}" for i in range(30)]
    flat = {key: f"[{after}][{after}]" for key, after in itertools.pairwise(keys)} | {
        keys[-1]: "text"
    }
    with pytest.raises(ConfigError, match=r"c\.yaml: key\d+ has more than [\d,]+ characters"):
        interpolate(flat, dict.fromkeys(flat, "c.yaml"))


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 500, 20000])
def test_depth(tmp_path, opening, depth):
    text = f"{HEAD}loss:\n  {opening * depth}"
    message = refusal(write(tmp_path, text))
    assert any(
        words in message
        for words in (f"more than {MAX_DEPTH} deep", "not valid YAML", "a key must be a word")
    )
    refusal(write(tmp_path, HEAD), "--optim.group_lr", opening * depth)


def test_stages_without_number(tmp_path):
    stages = "".join(f"- {{name: s{i}}}\n" for i in range(MAX_STAGES + 1))
    assert f"at most {MAX_STAGES} entries, got {MAX_STAGES + 1}" in refusal(
        write(tmp_path, f"{HEAD}stages:\n{stages}")
    )


# -------------------------------- shapes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: 3\n", "`base:` must be a file or a list of files, got 3"),
        ("base: [3]\n", "`base:` must be a file or a list of files, got [3]"),
        ("base: {a: b}\n", "`base:` must be a file or a list of files, got {'a': 'b'}"),
        ("base: ''\n", "`base:` must be a file or a list of files, got ''"),
        ("base: false\n", "`base:` must be a file or a list of files, got False"),
        ('base: "a\\0b"\n', "base must be text of UTF-8 without control characters, got 'a\\x00b'"),
        ("stages: [3]\n", "`stages:` must be a list of mappings, got [3]"),
        ("stages: [null]\n", "`stages:` must be a list of mappings, got [None]"),
        ("stages: {a: {}}\n", "`stages:` must be a list of mappings, got {'a': {}}"),
        (
            "stages: [{name: a, train: fast}]\n",
            "stage 'a': section 'train' must be a mapping of keys, got 'fast'",
        ),
        (
            "stages: [{name: a, method: dexa}]\n",
            "stage 'a': section 'method' must be a mapping of keys, got 'dexa'",
        ),
        (
            "stages: [{name: a, method: }]\n",
            "stage 'a': section 'method' must be a mapping of keys, got None",
        ),
        ("stages: [{name: a, method: {name: [x]}}]\n", "stage 'a': unknown method.name '['x']'"),
        ("stages: [{name: [a]}]\n", "stage names must be distinct plain names, got [['a']]"),
        ("stages: [{name: {a: b}}]\n", "stage names must be distinct plain names"),
        ("stages: [{name: 3}]\n", "stage names must be distinct plain names, got [3]"),
        ("stages: [{name: ..}]\n", "stage names must be distinct plain names"),
        (
            "stages: [{name: a, method: {members: {x: 3}}}]\n",
            "stage 'a': unknown key 'method.members'",
        ),
        ("method: {name: {a: b}}\n", "unknown method.name '{'a': 'b'}'"),
        ("train: {epochs: [3]}\n", "train.epochs must be whole number, got [3]"),
        (
            "optim: {group_lr: [1]}\n",
            "optim.group_lr must be mapping of names to number or null, got [1]",
        ),
        (
            "optim: {group_lr: {a: fast}}\n",
            "optim.group_lr must be mapping of names to number or null, got {'a': 'fast'}",
        ),
        (
            "eval: {without: trees}\n",
            "eval.without must be list of text or null, got 'trees'; a list is written [trees]",
        ),
        ("eval: {ks: 5}\n", "eval.ks must be list of whole number or null, got 5"),
        ("eval: {ks: [1, null]}\n", "eval.ks must be list of whole number or null, got [1, None]"),
        ("loss: {[a]: b}\n", "line 2: a key must be a word, got a list"),
        ("loss: {{a: b}: b}\n", "line 2: a key must be a word, got a mapping"),
        ("? [a, b]\n: 3\n", "line 2: a key must be a word, got a list"),
        ("loss: &n {name: bce}\n*n : 3\n", "line 3: a key must be a word, got an alias"),
        ("3: {a: b}\n", "unknown section '3'"),
        ("null: {a: b}\n", "unknown section 'null'"),
        ("train: {1.5: 3}\n", "unknown key 'train.1.5'"),
        ("train: {epochs: 1, epochs: 2}\n", "line 2: the key 'epochs' stands twice"),
        (
            "train: {epochs: 1}\nloss: {name: bce}\ntrain: {epochs: 2}\n",
            "line 4: the key 'train' stands twice",
        ),
        ("train:\n\tepochs: 3\n", "not valid YAML"),
        ("run: {expname: !!timestamp 2024-99-99}\n", "not valid YAML"),
        ("run: {expname: !!python/name:os.system }\n", "not valid YAML"),
        ("run: {expname: !!binary aGk=}\n", "not valid YAML"),
        ("train: {epochs: !!int x}\n", "not valid YAML"),
        ("train: {epochs: !!int ''}\n", "not valid YAML"),
        ("train: {epochs: !!bool 3}\n", "not valid YAML"),
        (f"train: {{epochs: {'9' * 5000}}}\n", "not valid YAML"),
        (f"run: {{expname: {'9' * 5000}}}\n", "not valid YAML"),
        ('run: {expname: "\\ud83d"}\n', "not valid YAML"),
        (
            'run: {expname: "a\\nb"}\n',
            "run.expname must be text of UTF-8 without control characters, got 'a\\nb'",
        ),
        ("--- {}\n--- {}\n", "not valid YAML"),
        ("just words\n", "expected a mapping of sections, got str"),
        ("2024-99-99\n", "expected a mapping of sections, got str"),
        ("- data\n", "expected a mapping of sections, got list"),
    ],
)
def test_shapes_that_are_no_config(tmp_path, text, message):
    alone = text.startswith(("---", "just", "2024", "- "))
    method = "" if alone or text.startswith("method") else "method: {name: dexml}\n"
    path = write(tmp_path, text if alone else f"data: {{name: D}}\n{text}{method}")
    assert message in refusal(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xfe" + "data: {name: D}".encode("utf-16-le"), "cannot be read as UTF-8 text"),
        (b"\x00\x01\x02", "not valid YAML"),
        (b"\x89PNG\r\n", "cannot be read as UTF-8 text"),
        (b"data: {name: caf\xe9}\n", "cannot be read as UTF-8 text"),
        (b"PK\x03\x04", "not valid YAML"),
        (bytes(range(256)), "cannot be read as UTF-8 text"),
    ],
)
def test_bytes_that_are_no_text(tmp_path, content, reason):
    message = refusal(write(tmp_path, content))
    assert reason in message


def test_a_mark_at_the_start_and_other_line_ends_are_fine(tmp_path):
    assert (
        load(write(tmp_path, b"\xef\xbb\xbf" + HEAD.replace("\n", "\r\n").encode())).data.name
        == "D"
    )
    assert refusal(write(tmp_path, b"")).startswith(str(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "no",
        "1e5",
        "0010",
        "12:30",
        "2024-01-31",
        "#",
        "a #b",
        "=",
        "<<",
        "~",
        "null",
        "1_0",
        "0b1",
        " a ",
        "a: b",
        "[a]",
        ".5",
        "-",
        "é漢",
        "*a",
        "'",
        "x" * 300,
        "a b " * 90,
    ],
)
def test_yaml_that_is_written_reads_back(text):
    values = {"key": text, "list": [text], "map": {text: text}}
    assert parse_yaml(dump_yaml(values), "here") == values


# -------------------------------- mutations of all shipped configs

VALUES = [
    None,
    True,
    0,
    -1,
    10**30,
    1.5,
    float("nan"),
    -1e300,
    1e-300,
    "",
    "x",
    "stage:",
    "best:",
    "stage:a/../b",
    "\0",
    "a\nb",
    "é",
    "null",
    "2024-99-99",
    "x" * 9000,
    [],
    [[1]],
    [None],
    {},
    {"a": 1},
    {"name": []},
    {"name": {}},
    [{}],
    [{"name": 3}],
    {"name": "elias-2"},
    {"name": "fusion", "members": {"a": "b.yaml"}},
]
PIECES = [
    "---\n",
    "\t",
    "&a ",
    "*a",
    "<<: *a\n",
    "!!int x",
    "[",
    "]",
    "{",
    "}",
    ": ",
    "- ",
    "? ",
    "|",
    "\x00",
    "\x85",
    "\u2028",
    "\ufeff",
    "2024-99-99",
    '"\\ud83d"',
    "!!set {a}",
    "%YAML 9.9\n",
    "#",
    "'",
    '"',
    ",",
    "9" * 5000,
    "<<: 3\n",
    "base: 3\n",
    "stages: [null]\n",
    "? [a]\n: 3\n",
    "[" * 50,
    "=",
    "1: 2\n",
    ".nan",
    "&a [*a]",
    "@",
]
WORDS = [
    "--train.epochs",
    "--run.dir",
    "--method.name",
    "--method.members",
    "--optim.group_lr",
    "--eval.ks",
    "--method.features",
    "--stages.encoder.method.name",
    "--stages.encoder.train.epochs",
    "--stages..a.b",
    "--base.x",
    "--loss.k",
    "--stages.a.stages.x",
    "--train.stop_epoch",
    "--data.name",
    "--run.expname",
]


def places(value, at=()):
    yield at
    parts = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, part in parts:
        yield from places(part, (*at, key))


def put(value, at, new):
    if not at:
        return new
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[at[0]] = put(value[at[0]], at[1:], new)
    return changed


def mutated(rng, text):
    """A config's text with one to three of its values replaced, or pieces put in."""
    count = rng.choice((1, 1, 2, 3))
    if rng.random() < 0.5:
        values = yaml.safe_load(text) or {}
        for _ in range(count):
            values = put(values, rng.choice(list(places(values))), rng.choice(VALUES))
        return dump_yaml(values)
    for _ in range(count):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(PIECES) + text[at + rng.choice((0, 1, 20)) :]
    return text


def test_any_change_of_a_config_is_refused_in_one_line_or_means_what_it_says(tmp_path):
    rng = random.Random(0)
    refused = 0
    sources = [(path, path.read_text()) for path in CONFIGS]
    for path, text in sources:
        copy = tmp_path / path.relative_to(CONFIGS[0].parent.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)
    for number in range(500):
        path, text = rng.choice(sources)
        words = () if number % 3 else (rng.choice(WORDS), str(rng.choice(VALUES + PIECES)))
        place = (tmp_path / path.relative_to(CONFIGS[0].parent.parent)).with_name(
            f"mutated-{number}.yaml"
        )
        place.write_bytes((text if words else mutated(rng, text)).encode())
        try:
            config = load(place, *words)
        except ConfigError as error:
            refused += 1
            assert "\n" not in str(error)
            assert len(str(error)) < 1500
        else:
            place.write_text(to_yaml(config))
            assert load_config(place) == config
        place.unlink()
    assert refused > 250


def test_shipped_configs_of_old_runs_still_load(tmp_path):
    """What to_yaml wrote before this file's rules: PyYAML's own dumper."""
    for path in CONFIGS:
        if path.name != "dataset.yaml" and path.parent.name != "configs":
            config = load_config(path)
            old = write(
                tmp_path,
                yaml.safe_dump(
                    yaml.safe_load(to_yaml(config)), sort_keys=False, allow_unicode=True
                ),
            )
            assert load_config(old) == config


def test_build_config_takes_python_values():
    config = build_config(
        {
            "data": {"name": "D"},
            "method": {"name": "dexml"},
            "eval": {"ks": (1, 2)},
            "optim": {"group_lr": {"a": 1}},
        },
        {},
    )
    assert config.eval.ks == (1, 2)
    assert dict(config.optim.group_lr) == {"a": 1.0}
