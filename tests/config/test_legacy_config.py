"""Configs of the older DEXML and ELIAS code,
and the published experiments as configs of this project."""

import itertools
import logging
from pathlib import Path

import pytest

from utils.config.config import ConfigError, load_config
from utils.config.legacy_yaml import convert, load_any_config
from utils.config.legacy_yaml_files import interpolate, read_flat
from utils.config.legacy_yaml_keys import FIXED
from utils.config.legacy_yaml_rules import KNOWN

ROOT = Path(__file__).parents[2] / "configs"
COMMON = """{dataset: LF-AmazonTitles-131K, project: Old, data_manager: two-tower,
   desc: 'a description',
  tf: distilbert-base-uncased, tf_pooler: cls, tf_max_len: 32, norm_embs: True, bottleneck_dim: 0,
   dropout: 0,
  loss: sim-loss, loss_sample: True, loss_weighted: False, loss_criterion: decoupled-softmax,
   tau: 0.05,
  bsz: 3000, gc_bsz: 1500, lr: 3.e-4, weight_decay: 0.01, warmup: 0.1, num_epochs: 100,
   eval_interval: 5,
  eval_topk: 100, track_metric: nDCG@5, amp_encode: True, num_val_points: 0, optim: adamw,
   neg_type: none,
  hard_neg_start: 1000, resume_path: ''}"""
ELIAS = """{dataset: amazon-670k, project: ELIAS, loss: elias-loss, data_manager: xmc,
   tf: bert-base-uncased,
  tf_max_len: 128, max_leaf: 100, beam_size: 20, alpha: 10, beta: 150, K: 2000, kappa: 1000,
   wl_dim: 0,
  loss_lambda: 0.05, cmat_seed: 0, ranker_calibrate: False, dropout: 0.5, bsz: 256,
   w_accumulation_steps: 10,
  lr: 3.e-4, lr_wl: 5.e-3, lr_tf: 3.e-5, use_swa: True, swa_start: 6, swa_step: 2000,
   num_val_points: 4000}"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def older(folder: Path, text: str, common: str = COMMON) -> Path:
    write(folder, "common.yaml", common)
    return write(folder, "older.yaml", "__dependency__: common.yaml\n" + text)


def load(path: Path, *words: str):
    return load_any_config(path, words)


# -------------------------------- nets
def test_all_labels(tmp_path):
    config = load(older(tmp_path, "net: dist-de-all\nexpname: old\n"))
    assert (config.method.name, config.method.pool, config.method.tau) == ("dexml", "all", 0.05)
    assert config.method.gc_batch_size == 1500 and config.method.hard_neg_start == 0
    assert (config.data.name, config.data.max_len) == ("LF-AmazonTitles-131K", 32)
    assert (config.data.propensity_a, config.data.propensity_b) == (0.6, 2.6)
    assert (config.encoder.name, config.encoder.pooling) == ("distilbert-base-uncased", "cls")
    assert (
        config.encoder.projection is None
        and config.encoder.dropout is None
        and config.encoder.normalize
    )
    assert (config.loss.name, config.loss.sample, config.loss.weighted) == (
        "decoupled-softmax",
        True,
        False,
    )
    assert (config.optim.lr, config.optim.weight_decay, config.optim.warmup) == (3e-4, 0.01, 0.1)
    assert config.optim.clip_norm is None
    assert (config.train.epochs, config.train.batch_size, config.train.eval_interval) == (
        100,
        3000,
        5,
    )
    assert config.train.mixed_precision == "fp16" and config.train.track_metric == "nDCG@5"
    assert config.eval.top_k == 100
    assert (config.run.project, config.run.expname) == ("Old", "old")
    # the older code would choose the checkpoint on the test split
    assert config.data.val_max_points > 0


@pytest.mark.parametrize(
    ("kind", "pool"), [("shorty", "hnm"), ("in-batch", "in-batch"), ("none", "hnm")]
)
def test_hard_negatives(tmp_path, kind, pool):
    text = "hard_neg_start: 5\nhard_neg_topk: 90\nnum_neg_samples: 4\nnum_pos_samples: 2\n"
    method = load(older(tmp_path, f"net: dist-de-hnm\nneg_type: {kind}\n{text}")).method
    assert (method.name, method.pool, method.shortlist_size) == ("dexml", pool, 90)
    assert (method.num_negatives, method.num_positives, method.refresh_interval) == (4, 2, 5)
    assert method.hard_neg_start == 6  # mined when epoch 5 ends


@pytest.mark.parametrize(
    ("start", "interval", "first"), [(0, 1, 1), (5, 1, 6), (3, 5, 6), (6, 5, 11)]
)
def test_first_epoch_with_mined_negatives(tmp_path, start, interval, first):
    text = (
        f"net: dist-de-hnm\nneg_type: shorty\nhard_neg_start: {start}\neval_interval: {interval}\n"
    )
    assert load(older(tmp_path, text)).method.hard_neg_start == first


def test_classifier(tmp_path):
    config = load(older(tmp_path, "net: dist-clf-net\nloss_criterion: bce\n"))
    assert (config.method.name, config.method.tau, config.loss.name) == ("ova", 0.05, "bce")
    assert config.run.expname == "older"  # no expname: the file's name


@pytest.mark.parametrize("net", ["elias-1", "elias-2"])
def test_elias(tmp_path, net):
    text = (
        "A_init_path: Results/[project]/x\nresume_path: "
        "Results/[project]/[dataset]/ELIAS-1/model.pt\n"
    )
    sections = convert(*read_flat(older(tmp_path, f"net: {net}\n{text}", ELIAS)))[0]
    assert sections["method"] == {
        "name": net,
        "max_leaf": 100,
        "beam": 20,
        "alpha": 10,
        "beta": 150,
        "K": 2000,
        "kappa": 1000,
        "wl_dim": None,
        "loss_lambda": 0.05,
        "cluster_seed": 0,
        "ranker_calibrate": False,
        "dropout": 0.5,
        "accumulation_steps": 10,
        "swa": True,
        "swa_start": 6,
        "swa_step": 2000,
        "graph": "Results/ELIAS/x",
    }
    assert sections["optim"]["lr"] == 0.0003
    # the older code's group of W_L holds them
    edges = {"edges": 0.005} if net == "elias-2" else {}
    assert sections["optim"]["group_lr"] == {"classifier": 0.005, "encoder": 3e-5, **edges}
    assert sections["loss"]["name"] == "bce"
    assert sections["data"]["val_max_points"] == 4000 and sections["data"]["val_fraction"] == 0.5
    assert sections["run"]["start_from"] == "Results/ELIAS/amazon-670k/ELIAS-1"


RUN = "Results/[project]/[dataset]"


@pytest.mark.parametrize(
    ("keys", "graph"),
    [
        (f"A_init_path: {RUN}/[expname]/cmat.npz", "cluster"),
        (f"A_init_path: ./{RUN}/[expname]/cmat.npz", "cluster"),
        (f"A_init_path: {RUN}/other/cmat.npz", "Results/ELIAS/amazon-670k/other.cluster_A.npz"),
        (f"A_init_path: {RUN}/ELIAS-1/A_approx.npz\nresume_path: {RUN}/ELIAS-1/model.pt", "approx"),
        (
            f"A_init_path: ./{RUN}/a/A_approx.npz\nresume_path: {RUN}/b/model.pt",
            "Results/ELIAS/amazon-670k/a/approx_A.npz",
        ),
        ("A_init_path: graphs/mine.npz", "graphs/mine.npz"),
    ],
)
def test_the_graph_files_of_the_older_steps(tmp_path, keys, graph):
    """cmat.npz and A_approx.npz are what our steps leave, and a run looks for, in other places."""
    text = f"net: elias-2\nexpname: 'ELIAS-2'\n{keys}\n"
    config = load(
        older(tmp_path, text, ELIAS),
        *([] if "resume" in keys else ["--run.start_from", "somewhere"]),
    )
    assert config.method.graph == graph


def test_a_graph_file_that_is_there_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "Results/ELIAS/amazon-670k/E/cmat.npz", "")
    text = f"net: elias-1\nexpname: E\nA_init_path: {RUN}/[expname]/cmat.npz\n"
    assert load(older(tmp_path, text, ELIAS)).method.graph == "Results/ELIAS/amazon-670k/E/cmat.npz"


def test_an_empty_graph_path_is_the_methods_own(tmp_path):
    assert load(older(tmp_path, "net: elias-1\nA_init_path: ''\n", ELIAS)).method.graph == "cluster"


OVA = """{project: ELIAS, expname: BERTOvA, desc: 'a linear layer', dataset: amazon-670k,
  net: ova-net, loss: ova-bce,
  data_manager: xmc, tf: bert-base-uncased, tf_pooler: cls, tf_max_len: 128, save: False,
  resume_path: '',
  data_tokenization: offline, num_val_points: 0, track_metric: nDCG@5, bottleneck_dim: 0,
  loss_with_logits: False,
  optim_bundle: elias, optim: adamw, num_epochs: 50, dropout: 0.5, warmup: 0.1, bsz: 256,
  eval_interval: 3,
  eval_topk: 100, w_accumulation_steps: 1, lr_wl: 0.01, lr_tf: 1.e-4, lr: 0.0001,
  weight_decay: 0.01,
  amp_encode: True, norm_embs: False, use_swa: False, swa_start: 8, swa_step: 1000}"""


def test_the_classifier_of_the_elias_code(tmp_path):
    config = load(write(tmp_path, "ova.yaml", OVA))
    assert (config.method.name, config.method.tau, config.loss.name) == ("ova", 1.0, "bce")
    assert config.optim.lr == 1e-4
    assert config.optim.group_lr == {"classifier": 0.01, "encoder": 1e-4}
    assert (config.encoder.name, config.encoder.normalize) == ("bert-base-uncased", False)
    assert (config.train.epochs, config.train.batch_size, config.run.expname) == (
        50,
        256,
        "BERTOvA",
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "w_accumulation_steps: 1",
            "w_accumulation_steps: 10",
            "w_accumulation_steps 10 has no counterpart for net ova",
        ),
        (
            "use_swa: False",
            "use_swa: True",
            "use_swa True has no counterpart for net ova-net, only False",
        ),
        (
            "loss: ova-bce",
            "loss: batch-bce",
            "loss 'batch-bce' has no counterpart for net ova-net, only 'ova-bce'",
        ),
        (
            "net: ova-net",
            "net: dist-de-all",
            "loss 'ova-bce' has no counterpart for net dist-de-all, only 'sim-loss'",
        ),
    ],
)
def test_what_the_classifier_has_not(tmp_path, old, new, message):
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, "ova.yaml", OVA.replace(old, new)))


@pytest.mark.parametrize("net", ["elias-1", "elias-2"])
def test_elias_loads(tmp_path, net):
    config = load(older(tmp_path, f"net: {net}\n", ELIAS))
    assert (config.method.name, config.method.K, config.method.wl_dim) == (net, 2000, None)
    assert config.method.graph == {"elias-1": "cluster", "elias-2": "approx"}[net]


@pytest.mark.parametrize(
    ("keys", "name", "sample", "k"),
    [
        ("loss_criterion: topk\ntopk_K: 7\nloss_sample: False", "soft-topk", True, 7),
        (
            "loss_criterion: topk\ntopk_K: num_pos\nloss_sample: False",
            "soft-topk",
            False,
            "num_pos",
        ),
        ("loss_criterion: softmax\nloss_sample: True", "softmax", False, 5),
        ("loss_criterion: softmax\nloss_sample: False", "softmax", False, 5),
        ("loss_criterion: decoupled-softmax\nloss_sample: False", "decoupled-softmax", False, 5),
    ],
)
def test_losses(tmp_path, keys, name, sample, k):
    loss = load(older(tmp_path, f"net: dist-de-all\ntopk_alpha: 3\n{keys}\n")).loss
    assert (loss.name, loss.sample, loss.k, loss.alpha) == (name, sample, k, 3.0)


@pytest.mark.parametrize(
    ("dataset", "constants"),
    [
        ("LF-AmazonTitles-1.3M", (0.6, 2.6)),
        ("LF-Wikipedia-500K", (0.5, 0.4)),
        ("LF-WikiSeeAlso-320K", (0.55, 1.5)),
        ("EURLex-4K", (0.55, 1.5)),
    ],
)
def test_propensity_constants_of_the_older_code(tmp_path, dataset, constants):
    data = load(older(tmp_path, f"net: dist-de-all\ndataset: {dataset}\n")).data
    assert (data.propensity_a, data.propensity_b) == constants


# -------------------------------- files
def test_dependencies_in_order(tmp_path):
    write(tmp_path, "configs/a.yaml", COMMON)
    write(tmp_path, "configs/b.yaml", "tau: 0.2\nbsz: 7\nnet: dist-de-all\n")
    path = write(tmp_path, "configs/set/c.yaml", "bsz: 9\n__dependency__: ../a.yaml, ../b.yaml\n")
    config = load(path)
    assert (config.method.tau, config.train.batch_size, config.train.epochs) == (0.2, 9, 100)


def test_dependency_counted_from_the_older_root(tmp_path, monkeypatch):
    write(tmp_path, "configs/a.yaml", COMMON)
    path = write(
        tmp_path, "configs/set/c.yaml", "__dependency__: configs/a.yaml\nnet: dist-de-all\n"
    )
    monkeypatch.chdir(tmp_path / "configs" / "set")
    assert load(Path("c.yaml")).method.tau == load(path).method.tau == 0.05


def test_broken_dependencies(tmp_path):
    with pytest.raises(ConfigError, match=r"c.yaml: `__dependency__:` names 'no.yaml'"):
        load(write(tmp_path, "c.yaml", "__dependency__: no.yaml\nnet: dist-de-all\n"))
    write(tmp_path, "a.yaml", "__dependency__: b.yaml\ntau: 1\n")
    with pytest.raises(ConfigError, match=r"goes in a circle"):
        load(write(tmp_path, "b.yaml", "__dependency__: a.yaml\ntau: 2\n"))


def test_overrides(tmp_path):
    path = older(tmp_path, "net: dist-de-all\n")
    assert load(path, "--optim.lr", "0.5", "--run.seed=3").optim.lr == 0.5
    assert load_any_config(path, {"train": {"epochs": 2}}).train.epochs == 2
    with pytest.raises(
        ConfigError, match=r"command line: unknown key 'optim.lrr'; did you mean 'lr'"
    ):
        load(path, "--optim.lrr", "0.5")


def test_config_of_this_project(tmp_path):
    path = write(tmp_path, "new.yaml", "data: {name: x}\nmethod: {name: ova}\nloss: {name: bce}\n")
    words = ["--loss.name", "softmax"]
    assert load(path, *words) == load_config(path, words)
    with pytest.raises(ConfigError, match=r"section 'loss' must be a mapping"):
        load(write(tmp_path, "new.yaml", "data: {name: x}\nloss: bce\n"))
    with pytest.raises(ConfigError, match="unknown section 'metod'; did you mean 'method'"):
        load(write(tmp_path, "new.yaml", "data: {name: x}\nmetod: {name: ova}\n"))


def test_mixed_files(tmp_path):
    with pytest.raises(
        ConfigError, match=r"mixed.yaml: mixes sections \(optim\) with flat .* \(net, tau\)"
    ):
        load(write(tmp_path, "mixed.yaml", "net: dist-de-all\ntau: 1\noptim: {lr: 1}\n"))
    write(tmp_path, "dataset.yaml", "data: {name: x}\n")
    with pytest.raises(
        ConfigError, match=r"dataset.yaml: holds sections \(data\), but .*flat.yaml"
    ):
        load(write(tmp_path, "flat.yaml", "__dependency__: dataset.yaml\nnet: dist-de-all\n"))


# -------------------------------- references
def test_references(tmp_path):
    text = "net: dist-de-all\nexpname: 'a-[desc]'\ndesc: '[loss_criterion]_[tau]_[bsz]'\n"
    assert load(older(tmp_path, text)).run.expname == "a-decoupled-softmax_0.05_3000"


def test_broken_references():
    files = dict.fromkeys("abc", "f.yaml")
    with pytest.raises(ConfigError, match="f.yaml: references go in a circle: a -> b -> c -> a"):
        interpolate({"a": "[b]", "b": "x[c]", "c": "[a]"}, files)
    with pytest.raises(ConfigError, match="circle: a -> a"):
        interpolate({"a": "[a]"}, files)
    with pytest.raises(
        ConfigError, match=r"f.yaml: a refers to \[d\], which is no key; known: a, b"
    ):
        interpolate({"a": "[d]", "b": 1}, files)


def test_files_and_references_that_multiply(tmp_path):
    """Each file names the next twice, each value the next ten times: refused before it fills the
    memory."""
    for number in range(30):
        write(
            tmp_path,
            f"f{number}.yaml",
            f"__dependency__: f{number + 1}.yaml, f{number + 1}.yaml\ntau: 1\n",
        )
    write(tmp_path, "f30.yaml", "net: dist-de-all\n")
    with pytest.raises(
        ConfigError, match=r"f0.yaml: its `__dependency__:` leads to more than 100 files"
    ):
        load(tmp_path / "f0.yaml")
    keys = sorted(KNOWN)
    values = {key: f"[{after}]" * 10 for key, after in itertools.pairwise(keys)} | {
        keys[-1]: "x" * 10
    }
    with pytest.raises(
        ConfigError, match="has more than 10,000 characters, its references replaced"
    ):
        interpolate(values, dict.fromkeys(keys, "f.yaml"))


# -------------------------------- refusals
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tua: 1", r"older.yaml: unknown key 'tua'; did you mean 'tau'"),
        (
            "loss_criterion: softmx",
            r"older.yaml: unknown loss_criterion 'softmx'; did you mean 'softmax'",
        ),
        ("net: dist-de", r"older.yaml: net must be one of dist-de-all, .*, elias-2, got dist-de"),
        ("kind: [x]", r"older.yaml: unknown key 'kind'"),
        ("optim: sgd", r"older.yaml: optim 'sgd' has no counterpart, only 'adamw'"),
        ("neg_type: sorty", r"neg_type 'sorty' has no counterpart"),
        ("transpose_trn_dataset: True", r"transpose_trn_dataset True has no counterpart"),
        ("tau: warm", r"older.yaml \(tau\): method.tau must be number, got 'warm'"),
        (
            "tf_pooler: lightxml",
            r"older.yaml \(tf_pooler\): encoder.pooling must be one of cls, mean",
        ),
        ("bsz: 0", r"older.yaml \(bsz\): train.batch_size must be at least 1, got 0"),
        ("dataset: ''", r"data.name is missing"),
    ],
)
def test_refusals(tmp_path, line, message):
    net = "" if line.startswith("net") else "net: dist-de-all\n"
    with pytest.raises(ConfigError, match=message):
        load(older(tmp_path, net + line + "\n"))


def test_net_is_needed(tmp_path):
    with pytest.raises(ConfigError, match="net must be one of .* got None"):
        load(write(tmp_path, "older.yaml", "tau: 1\n"))


# -------------------------------- the log
def test_every_key_is_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="legacy_config")
    text = (
        "net: dist-de-hnm\nneg_type: shorty\nhard_neg_start: 5\nK: 3\nnum_gpu: 2\nexpname: "
        "'[net]'\n"
    )
    load(older(tmp_path, text))
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    for line in (
        "net: dist-de-hnm -> method.name dexml, method.pool hnm",
        "tau: 0.05 -> method.tau 0.05",
        "dataset: LF-AmazonTitles-131K -> data.name LF-AmazonTitles-131K",
        "expname: dist-de-hnm -> run.expname dist-de-hnm",
        "bottleneck_dim: 0 -> encoder.projection null",
        "norm_embs: true -> encoder.normalize true",
        "amp_encode: true -> train.mixed_precision fp16",
        "eval_interval: 5 -> train.eval_interval 5, method.refresh_interval 5",
        "hard_neg_start: 5 -> method.hard_neg_start 6 (the epoch after its first mining)",
        "desc: a description -> dropped (a comment serves)",
        "K: 3 -> dropped (net dist-de-hnm does not read it)",
        "no key -> data.propensity_a 0.6, data.propensity_b 2.6 (the older code's rule on names)",
        "no key -> optim.clip_norm null (the older code does not clip gradients)",
    ):
        assert line in lines, line
    keys = read_flat(tmp_path / "older.yaml")[0]
    assert all(sum(line.startswith(f"{key}: ") for line in lines) == 1 for key in keys)


def test_warnings(tmp_path, caplog):
    load(older(tmp_path, "net: dist-de-all\ndropout: 0.3\n"))
    warned = "\n".join(r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    assert "lr 0.0003 is used as written" in warned and "as on 4, --optim.lr 0.0012" in warned
    assert "bsz 3000 is used as written" in warned and "as on 4, --train.batch_size 12000" in warned
    assert "num_val_points 0" in warned and "dropout 0.3" in warned
    caplog.clear()
    load(older(tmp_path, "net: dist-de-all\nnum_gpu: 1\nnum_val_points: 100\n"))
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]


def test_every_known_key_converts_or_says_why(tmp_path):
    """No key of the tables ends in a KeyError, whatever the net."""
    values = {key: allowed[0] for key, (allowed, _) in FIXED.items()} | {
        "loss_criterion": "topk",
        "use_swa": False,
    }
    losses = dict.fromkeys(("dist-de-all", "dist-de-hnm", "dist-clf-net"), "sim-loss")
    losses |= {"ova-net": "ova-bce", "elias-1": "elias-loss", "elias-2": "elias-loss"}
    for net, loss in losses.items():
        flat = {
            **dict.fromkeys(sorted(KNOWN), 1),
            **values,
            "net": net,
            "loss": loss,
            "A_init_path": "x.npz",
        }
        sections = convert(flat, dict.fromkeys(flat, "f.yaml"))[0]
        assert sections["method"]["name"] in (net, "dexml", "ova")


# -------------------------------- the published experiments
# data set: normalize, tau, released batch, gc, released lr (both of each of 4 processes), length,
# propensity
PUBLISHED = {
    "EURLex-4K": (True, 0.05, 512, 4096, 5e-5, 128, (0.55, 1.5)),
    "LF-AmazonTitles-131K": (True, 0.05, 3000, 3000, 3e-4, 32, (0.6, 2.6)),
    "LF-AmazonTitles-1.3M": (False, 1.0, 3000, 3000, 3e-4, 32, (0.6, 2.6)),
    "LF-Wikipedia-500K": (False, 1.0, 768, 512, 7e-5, 128, (0.5, 0.4)),
}
FILES = sorted(path for name in PUBLISHED for path in (ROOT / name).glob("dist-de-*.yaml"))


def test_published_files_are_there():
    assert len(FILES) == 11
    assert len([path for name in PUBLISHED for path in (ROOT / name).glob("dataset.yaml")]) == 4


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_published_settings(path):
    normalize, tau, batch, gc, lr, length, constants = PUBLISHED[path.parent.name]
    pool, loss = path.stem.removeprefix("dist-de-").split("_")
    lr = 2e-5 if (path.parent.name, pool) == ("LF-Wikipedia-500K", "hnm") else lr
    config = load_config(path)
    assert config == load(path)
    assert (config.data.name, config.data.max_len) == (path.parent.name, length)
    assert (config.data.propensity_a, config.data.propensity_b) == constants
    assert (config.encoder.name, config.encoder.pooling) == ("distilbert-base-uncased", "cls")
    assert (config.encoder.normalize, config.method.tau) == (normalize, tau)
    assert (config.method.name, config.method.pool, config.method.gc_batch_size) == (
        "dexml",
        pool,
        gc,
    )
    assert config.loss.name == {"topk": "soft-topk"}.get(loss, loss)
    assert config.loss.sample is (loss != "softmax") and (config.loss.k, config.loss.alpha) == (
        5,
        2.0,
    )
    assert config.optim.lr == pytest.approx(4 * lr) and config.train.batch_size == 4 * batch
    assert (config.optim.weight_decay, config.optim.warmup, config.train.epochs) == (0.01, 0.1, 100)
    assert config.train.eval_interval == (
        1 if path.parent.name + pool == "LF-Wikipedia-500Kall" else 5
    )
    if pool == "hnm":
        assert (config.method.hard_neg_start, config.method.refresh_interval) == (6, 5)
        assert config.method.shortlist_size == 100
        assert config.method.num_negatives == (5 if path.parent.name == "LF-Wikipedia-500K" else 1)
    assert config.run.expname == path.stem and config.run.project == "DEXML"


@pytest.mark.parametrize("name", PUBLISHED)
def test_data_set_files(name):
    path = ROOT / name / "dataset.yaml"
    config = load_config(path, {"method": {"name": "ova"}})
    assert config.data.name == name
    assert (config.data.propensity_a, config.data.propensity_b) == PUBLISHED[name][-1]
