"""JSON configs of the released NGAME and DEXA code: the published values are the shipped
configs."""

import copy
import json
import logging
from pathlib import Path

import pytest

import train
from engine.conformance.made import write_dataset
from tests.config.released_json import DEXA, NGAME, written
from utils.config.config import ConfigError, stage_config, to_mapping
from utils.config.legacy_json import load_released
from utils.config.legacy_json_rules import RULES
from utils.config.legacy_yaml import load_any_config

ROOT = Path(__file__).parents[2] / "configs"


def load(path: Path, *words: str):
    return load_any_config(path, words)


def changed(values: dict, **sections: dict) -> dict:
    new = copy.deepcopy(values)
    for section, content in sections.items():
        new[section] |= content
    return new


def stages_of(config) -> dict[str, dict]:
    return {stage["name"]: to_mapping(stage_config(config, stage)) for stage in config.stages}


@pytest.mark.parametrize(("kind", "values"), [("DEXA", DEXA), ("NGAME", NGAME)])
def test_the_published_values_are_the_shipped_configs(tmp_path, kind, values):
    """All that differs: the name of the run, which the released code makes of a version and a
    seed, and fp16, in place of which a card's own best is taken."""
    got = load(written(tmp_path / kind, values))
    shipped = load(ROOT / "LF-AmazonTitles-131K" / f"{kind.lower()}.yaml")
    mine, theirs = stages_of(got), stages_of(shipped)
    assert mine.keys() == theirs.keys()
    for stage, sections in mine.items():
        assert sections["run"].pop("expname") == "v_0_0"
        assert theirs[stage]["run"].pop("expname") == kind.lower()
        assert sections["train"].pop("mixed_precision") == "fp16"
        assert theirs[stage]["train"].pop("mixed_precision") == "auto"
        for section, keys in sections.items():
            assert keys == theirs[stage][section], (stage, section)


@pytest.mark.parametrize(
    ("folder", "values", "words", "run"),
    [
        ("DEXA", DEXA, (), "DEXA/LF-AmazonTitles-131K/v_0_0"),
        ("DEXA", DEXA, ("--run.seed", "108"), "DEXA/LF-AmazonTitles-131K/v_0_108"),
        ("SiameseXML", NGAME, ("--run.seed=22",), "SiameseXML/LF-AmazonTitles-131K/v_0_22"),
        ("DeepXML", NGAME, (), "DeepXML/LF-AmazonTitles-131K/v_0_0"),
        ("mine", DEXA, (), "DEXA/LF-AmazonTitles-131K/v_0_0"),
        ("mine", NGAME, ("--run.expname", "v_7"), "NGAME/LF-AmazonTitles-131K/v_7"),
        (
            "mine",
            changed(NGAME, **{"global": {"type": "Mine", "version": 3, "seed": 5}}),
            (),
            "Mine/LF-AmazonTitles-131K/v_3_5",
        ),
    ],
)
def test_type_version_and_seed_name_the_run(tmp_path, folder, values, words, run):
    assert load(written(tmp_path / folder, values), *words).run_folder == Path("Results") / run


def test_a_small_one_trains(tmp_path, tiny_encoder):
    """All three stages, on a made set."""
    write_dataset(tmp_path / "sets" / "small", points=40, labels=12)
    values = changed(
        DEXA,
        **{
            "global": {
                "dataset": "small",
                "encoder_name": tiny_encoder,
                "max_length": 12,
                "aux_num_vectors": 7,
                "aux_num_hlp_vectors": 3,
                "top_k": 8,
            },
            "siamese": {
                "num_epochs": 2,
                "batch_size": 16,
                "sampling_curr_epochs": [1],
                "warmup_steps": 1,
                "use_amp": False,
            },
            "extreme": {
                "num_epochs": 2,
                "batch_size": 16,
                "sampling_init_cluster_size": 4,
                "sampling_curr_epochs": [1],
                "warmup_steps": 1,
                "num_nbrs": 5,
            },
        },
    )
    run = tmp_path / "run"
    config = load(
        written(tmp_path, values),
        "--data.root",
        str(tmp_path / "sets"),
        "--run.dir",
        str(run),
        "--data.val_fraction",
        "0.2",
        "--run.tensorboard",
        "false",
    )
    assert train.fit(config) == run
    assert (run / "finished").exists()
    assert json.loads((run / "model" / "method.json").read_text())["num_labels"] == 12


@pytest.mark.parametrize(
    ("size", "epochs", "expected"),
    [
        (4, [10, 25], ((10, 25), 4)),
        (1, [10, 15, 20], ((15, 20), 2)),
        (2, [3], ((3,), 2)),
        (64, [0, 9], ((0, 9), 64)),
    ],
)
def test_clusters(tmp_path, size, epochs, expected):
    values = changed(
        DEXA, siamese={"sampling_init_cluster_size": size, "sampling_curr_epochs": epochs}
    )
    method = load(written(tmp_path, values)).method
    assert (method.curr_epochs, method.cluster_size) == expected


def test_clusters_that_never_grow_are_random_batches(tmp_path):
    values = changed(DEXA, siamese={"sampling_init_cluster_size": 1, "sampling_curr_epochs": [10]})
    assert load(written(tmp_path, values)).method.batches == "random"


@pytest.mark.parametrize(
    ("key", "value", "stage", "target", "got"),
    [
        ("global.max_length", 128, "encoder", "data.max_len", 128),
        ("global.encoder_name", "roberta/base", "encoder", "encoder.name", "roberta/base"),
        (
            "global.encoder_name",
            "all-MiniLM-L6-v2",
            "encoder",
            "encoder.name",
            "sentence-transformers/all-MiniLM-L6-v2",
        ),
        ("global.beta", 0.25, "fused", "method.tree_weight", 0.25),
        ("siamese.use_amp", False, "encoder", "train.mixed_precision", "no"),
        ("siamese.optim", "Adam", "encoder", "optim.weight_decay", 0.0),
        ("siamese.batch_size", 350, "encoder", "method.gc_batch_size", 350),
        ("extreme.freeze_encoder", False, "classifiers", "method.freeze", False),
        ("extreme.loss_num_positives", 4, "classifiers", "loss.hardest_positives", 4),
        ("extreme.efS", 77, "fused", "eval.hnsw_ef", 77),
        ("extreme.num_nbrs", 55, "fused", "method.candidates", 55),
    ],
)
def test_keys(tmp_path, key, value, stage, target, got):
    section, name = key.split(".")
    config = load(written(tmp_path, changed(DEXA, **{section: {name: value}})))
    section, name = target.split(".")
    assert stages_of(config)[stage][section][name] == got


def test_overrides_reach_the_stage_that_they_name(tmp_path):
    path = written(tmp_path, DEXA)
    assert (
        stages_of(load(path, "--stages.classifiers.train.epochs", "3"))["classifiers"]["train"][
            "epochs"
        ]
        == 3
    )
    with pytest.raises(ConfigError, match=r"--stages\.classifiers\.train\.epochs"):
        load(path, "--train.epochs", "3")


def test_every_key_is_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="legacy_config")
    load(written(tmp_path / "DEXA", DEXA), "--run.seed", "4")
    lines = [record.getMessage() for record in caplog.records]
    for section, keys in DEXA.items():
        for key in keys:
            assert sum(line.startswith(f"{section}.{key}: ") for line in lines) == 1, key
    for line in (
        "siamese.num_epochs: 300 -> train.epochs 300",
        "extreme.num_epochs: 100 -> classifiers:train.epochs 100",
        "extreme.ann_threads: 12 -> dropped (run.threads is of the whole process)",
        "type, version and seed -> run.project DEXA, run.expname v_0_4",
    ):
        assert line in lines


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("siamese", "num_epoch", 3, r"unknown key 'siamese.num_epoch'; did you mean 'num_epochs'"),
        (
            "extreme",
            "loss_num_positive",
            3,
            r"unknown key 'extreme.loss_num_positive'; did you mean 'loss_num_positives'",
        ),
        ("global", "datset", "x", r"unknown key 'global.datset'; did you mean 'dataset'"),
        (
            "siamese",
            "loss",
            "triplet",
            r"siamese.loss triplet has no counterpart, only triplet_margin_ohnm; did you mean",
        ),
        ("siamese", "share", True, r"unknown key 'siamese.share'"),
        (
            "global",
            "share_weights",
            False,
            r"global.share_weights false has no counterpart, only true",
        ),
        ("global", "share_weights", 1, r"global.share_weights 1 has no counterpart, only true"),
        (
            "global",
            "trn_filter_fname",
            "filters.txt",
            r"global.trn_filter_fname filters.txt has no counterpart, only filt",
        ),
        ("global", "version", "../x", r"global.version must be a plain word or number, got \.\./x"),
        ("global", "type", "a/b", r"run.project must be a plain folder name"),
        (
            "siamese",
            "num_epochs",
            "many",
            r"\(siamese.num_epochs\): train.epochs must be whole number",
        ),
        ("siamese", "sampling_curr_epochs", 5, r"method.curr_epochs must be list of whole number"),
        ("siamese", "sampling_curr_epochs", [20, 10], r"method.curr_epochs must be ascending"),
        ("extreme", "margin", "x", r"loss.margin must be number"),
        ("siamese", "use_amp", "yes", r"train.mixed_precision must be"),
        ("siamese", "optim", "SGD", r"siamese.optim SGD has no counterpart, only Adam or AdamW"),
        (
            "extreme",
            "inference_method",
            "mips",
            r"extreme.inference_method mips has no counterpart, only dual_mips",
        ),
    ],
)
def test_refusals(tmp_path, make_config, section, key, value, message):
    path = written(tmp_path, changed(DEXA, **{section: {key: value}}))
    with pytest.raises(ConfigError, match=message):
        config = load(path)
        from models.batching.clustered_batches import check_curriculum

        check_curriculum(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v: v.pop("extreme"),
            "expected the sections global, siamese, extreme, .*; 'extreme' is missing",
        ),
        (
            lambda v: v.update(siamese=3),
            "expected the sections global, siamese, extreme, each .*; 'siamese' is 3",
        ),
        (
            lambda v: v.update(surrogate={}),
            "unknown section 'surrogate'; known: extreme, global, siamese",
        ),
        (lambda v: v.update(train={"epochs": 1}), "unknown section 'train'"),
        (lambda v: v["siamese"].pop("learning_rate"), "'siamese.learning_rate' is missing"),
        (lambda v: v["global"].pop("dataset"), "'global.dataset' is missing"),
    ],
)
def test_files_of_another_form(tmp_path, change, message):
    values = copy.deepcopy(DEXA)
    change(values)
    with pytest.raises(ConfigError, match=message):
        load(written(tmp_path, values))


@pytest.mark.parametrize("word", ["a\nb", "\x1b[31m", "a\u2028b"])
def test_a_message_is_one_line_whatever_stands_in_the_file(tmp_path, word):
    written_files = [written(tmp_path, changed(DEXA, **{"global": {"arch": word}}))]
    for key in ("net", "loss_criterion"):
        flat = {
            "net": "dist-de-all",
            "dataset": "LF-AmazonTitles-131K",
            "loss_criterion": "softmax",
            key: word,
        }
        written_files.append(tmp_path / f"{key}.yaml")
        written_files[-1].write_text(json.dumps(flat))
    for path in written_files:
        with pytest.raises(ConfigError) as error:
            load(path)
        assert str(path) in str(error.value)
        assert str(error.value).isprintable()


def test_every_known_key_takes_any_value_or_says_why():
    """A value of another kind ends in no traceback."""
    for section, rules in RULES.items():
        for key in rules:
            for value in (None, True, -1, 1e30, "x", [], [1, "a"], {"b": 2}):
                try:
                    load_released(Path("x.json"), changed(DEXA, **{section: {key: value}}), ())
                except ConfigError as error:
                    assert "\n" not in str(error)


def test_config_of_this_project_in_json(tmp_path):
    path = written(tmp_path, {"data": {"name": "x"}, "method": {"name": "ova"}}, "mine.json")
    assert (load(path).method.name, load(path).run.expname) == ("ova", "mine")
