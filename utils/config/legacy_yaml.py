"""Flat YAML configs of the older DEXML and ELIAS code -> the typed sections of `utils.config`.

    config = load_any_config("older.yaml", ["--train.epochs", "3"])

A flat file may name others in `__dependency__: a.yaml, b.yaml` (merged first, later wins) and refer
to its keys as `[key]` inside strings. Every key is converted, dropped for a stated reason, or
refused, and the log says which. Keys mean what they mean in the released code
(github.com/nilesh2797/DEXML and /ELIAS), where lr and bsz are given per process: here both are
taken as written, which is the older code's run on one process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.config.config import (
    OUTSIDE,
    SECTIONS,
    Config,
    ConfigError,
    finish_config,
    load_config,
    nearest,
    read_yaml,
)
from utils.config.graph_places import approx_file, cluster_file
from utils.config.legacy_json import is_released, load_released
from utils.config.legacy_log import log, say, shown

MAX_FILES = 100  # that a flat config depends on
MAX_TEXT = 10_000  # characters of a value, references replaced
Values = dict[str, Any]
Converted = tuple[Values, str]  # {"section.key": value}, and a note for the log
Rule = Callable[[Any, Values], Converted]  # of a key's value and all keys

# -------------------------------- keys: same meaning, new name
MOVED = {
    "dataset": "data.name",
    "tf_max_len": "data.max_len",
    "num_workers": "data.workers",
    "tf": "encoder.name",
    "tf_pooler": "encoder.pooling",
    "norm_embs": "encoder.normalize",
    "loss_weighted": "loss.weighted",
    "topk_alpha": "loss.alpha",
    "project": "run.project",
    "wd": "optim.weight_decay",
    "warmup": "optim.warmup",
    "seed": "run.seed",
    "wandb": "run.wandb",
    "num_epochs": "train.epochs",
    "track_metric": "train.track_metric",
    "eval_topk": "eval.top_k",
    "expname": "run.expname",
}
DEXML_MOVED = {"tau": "method.tau", "gc_bsz": "method.gc_batch_size"}
HNM_MOVED = {
    "hard_neg_topk": "method.shortlist_size",
    "num_neg_samples": "method.num_negatives",
    "num_pos_samples": "method.num_positives",
}
ELIAS_MOVED = {
    "max_leaf": "method.max_leaf",
    "beam_size": "method.beam",
    "K": "method.K",
    "kappa": "method.kappa",
    "alpha": "method.alpha",
    "beta": "method.beta",
    "loss_lambda": "method.loss_lambda",
    "dropout": "method.dropout",
    "cmat_seed": "method.cluster_seed",
    "use_swa": "method.swa",
    "swa_start": "method.swa_start",
    "swa_step": "method.swa_step",
    "w_accumulation_steps": "method.accumulation_steps",
    "ranker_calibrate": "method.ranker_calibrate",
}
METHOD_OF_NET = {
    "dist-de-all": "dexml",
    "dist-de-hnm": "dexml",
    "dist-clf-net": "ova",
    "ova-net": "ova",
    "elias-1": "elias-1",
    "elias-2": "elias-2",
}
LOSSES = {
    "softmax": "softmax",
    "decoupled-softmax": "decoupled-softmax",
    "topk": "soft-topk",
    "bce": "bce",
}

# -------------------------------- keys without a meaning here
DROPPED = {
    "__dependency__": "merged",
    "desc": "a comment serves",
    "save": "the best model is always saved",
    "data_tokenization": "texts are tokenized once, on first use",
    "tf_token_type": "the encoder's own tokenizer is used",
    "optim_bundle": "the method groups its parameters; optim.group_lr sets their rates",
    "topk_n_iter": "the threshold is solved to full precision, not by a number of bisections",
    "loss_reduction": "nothing read it: the loss is the mean over the batch",
    "loss_with_logits": "losses work on logits",
    "expand_multilabel_dataset": "nothing read it",
    "DATA_DIR": "follows from data.root and data.name",
    "data_dir": "nothing read it; see data.root",
    "OUT_DIR": "follows from run.root, run.project, data.name and run.expname",
    **dict.fromkeys(("trn_shorty", "tst_shorty"), "shortlists are mined by the run itself"),
    **dict.fromkeys(
        (
            "device",
            "amp",
            "num_gpu",
            "use_grad_scaler",
            "hostname",
            "exp_start_time",
            "embs_dim",
            "nnz",
            "wandb_id",
            "numy",
            "numx",
            "C",
            "no_model",
        ),
        "the older code wrote it into its own copy of a config; each run finds it anew",
    ),
}
# Options whose other values have no counterpart: refused rather than ignored.
FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "data_manager": (("two-tower", "xmc"), "the layout of Datasets/ is the only one"),
    "neg_type": (("none", "shorty", "in-batch", "all"), "method.pool follows from net and it"),
    "optim": (("adamw",), "AdamW is the only optimizer"),
    "transpose_trn_dataset": ((False,), "training runs over queries"),
    "only_keep_trn_labels": ((False,), "all labels are kept"),
    "embed_id": (("", None), "there are no precomputed embeddings"),
    "custom_dropout": ((0, False, "", None), "encoder.dropout is the only one"),
}


# -------------------------------- keys that need a rule
def _net(net: str, flat: Values) -> Converted:
    mined = {"in-batch": "in-batch", "all": "all"}.get(str(flat.get("neg_type")), "hnm")
    pools = {"dist-de-all": "all", "dist-de-hnm": mined}
    return {
        "method.name": METHOD_OF_NET[net],
        **({"method.pool": pools[net]} if net in pools else {}),
    }, ""


def _loss(name: str, flat: Values) -> Converted:
    expected = {"ova-net": "ova-bce", "elias-1": "elias-loss", "elias-2": "elias-loss"}.get(
        flat["net"], "sim-loss"
    )
    if name != expected:
        raise ConfigError(
            f"loss {name!r} has no counterpart for net {flat['net']}, only {expected!r}"
        )
    return {}, "the loss follows from net and loss_criterion"


def _loss_criterion(name: str, flat: Values) -> Converted:
    if str(name) in LOSSES:
        return {"loss.name": LOSSES[name]}, ""
    raise ConfigError(f"unknown loss_criterion '{shown(name)}'{nearest(name, list(LOSSES))}")


def _loss_sample(sample: bool, flat: Values) -> Converted:
    criterion = flat.get("loss_criterion")
    # absent positives would turn softmax into decoupled softmax
    if criterion == "softmax" and sample:
        return {"loss.sample": False}, "unsampled positives stay in its denominator"
    always = criterion == "topk" and isinstance(flat.get("topk_K", 5), int)
    return {
        "loss.sample": sample or always
    }, "top-k sampled in any case" if always and not sample else ""


def _per_process(key: str, target: str, group: str | None = None) -> Rule:
    """A number that the older code multiplies by its number of processes: kept as written, with a
    warning."""

    def convert(value: Any, flat: Values) -> Converted:
        count = flat.get("num_gpu", 4)
        option = f"{target}.{group}" if group else f"--{target}"
        if isinstance(value, (int, float)) and isinstance(count, int) and count > 1:
            log.warning(
                "%s %s is used as written for all processes together; the older code multiplies "
                "it by their number: as on %d, %s %.6g",
                key,
                value,
                count,
                option,
                value * count,
            )
        return {target: {group: value} if group else value}, ""

    return convert


def _dropout(rate: float, flat: Values) -> Converted:
    if rate:
        log.warning(
            "dropout %s on the pooled embedding has no counterpart in this method; "
            "encoder.dropout is the rate inside the encoder",
            rate,
        )
    return {}, "it acted on the pooled embedding; inside, the encoder keeps its own rate"


def _eval_interval(epochs: int, flat: Values) -> Converted:
    mining = {"method.refresh_interval": epochs} if flat["net"] == "dist-de-hnm" else {}
    return {"train.eval_interval": epochs, **mining}, ""


def _hard_neg_start(start: int, flat: Values) -> Converted:
    """The older code mines when the first epoch >= start that it evaluates ends, for the epochs
    after it."""
    every = flat.get("eval_interval", 1)
    # else the typed section will object
    whole = type(start) is int and type(every) is int and every > 0
    first = -(-start // every) * every + 1 if whole else start
    return {"method.hard_neg_start": first}, "the epoch after its first mining"


def _num_val_points(count: int, flat: Values) -> Converted:
    if not count:
        log.warning(
            "num_val_points %s made the older code choose its best checkpoint on the TEST split; "
            "here a validation split is held out of the training points",
            count,
        )
        return {}, "the default validation split"
    return {
        "data.val_max_points": count,
        "data.val_fraction": 0.5,
    }, "that many, of at most half the points"


def _folder_of(model: str | None) -> str:
    """The run folder of the older code's model.pt."""
    return re.sub(r"/?model\.pt$", "", str(model or ""))


def _resume_path(path: str, flat: Values) -> Converted:
    folder = _folder_of(path)
    return ({"run.start_from": folder}, "") if folder else ({}, "nothing to start from")


def _only(key: str, value: Any) -> Rule:
    """A key of which this method knows one value."""

    def convert(given: Any, flat: Values) -> Converted:
        if given != value:
            raise ConfigError(
                f"{key} {given!r} has no counterpart for net {flat['net']}, only {value!r}"
            )
        return {}, "always so here"

    return convert


def _or_null(target: str) -> Rule:
    return lambda value, flat: ({target: value or None}, "")


def _graph(path: str, flat: Values) -> Converted:
    """The older steps write cmat.npz and A_approx.npz into a run's folder; ours have other places,
    where the run that needs the graph looks by itself."""
    if not path:
        return {}, "the method's own graph"
    if not isinstance(path, str):
        return {"method.graph": path}, ""  # which the typed section refuses
    file = Path(os.path.normpath(path))
    if file.is_file() or file.name not in ("cmat.npz", "A_approx.npz"):
        return {"method.graph": path}, ""
    own = Path("Results", *(str(flat.get(key)) for key in ("project", "dataset", "expname")))
    start = Path(os.path.normpath(_folder_of(flat.get("resume_path")) or "."))
    if file.name == "cmat.npz":
        found = cluster_file(file.parent)
        return {
            "method.graph": "cluster" if file.parent == own else str(found)
        }, f"{found}, by gen_cluster_A"
    found = approx_file(file.parent)
    return {
        "method.graph": "approx" if file.parent == start else str(found)
    }, f"{found}, by gen_approx_A"


def _lr_wl(rate: float, flat: Values) -> Converted:
    """The older code's group of W_L holds the edges too, where they are learned."""
    values, note = _per_process("lr_wl", "optim.group_lr", "classifier")(rate, flat)
    edges = {"edges": rate} if flat["net"] == "elias-2" else {}
    return {"optim.group_lr": {**values["optim.group_lr"], **edges}}, note


RULES: dict[str, Rule] = {
    "net": _net,
    "loss": _loss,
    "loss_criterion": _loss_criterion,
    "loss_sample": _loss_sample,
    "dropout": _dropout,
    "topk_K": lambda k, flat: ({"loss.k": "num_pos" if str(k).startswith("num_pos") else k}, ""),
    "lr": _per_process("lr", "optim.lr"),
    "bsz": _per_process("bsz", "train.batch_size"),
    "weight_decay": lambda decay, flat: (
        {"optim.weight_decay": decay},
        "" if decay == 0.01 else "the older code took 0.01 whatever it says",
    ),
    "amp_encode": lambda amp, flat: ({"train.mixed_precision": "fp16" if amp else "no"}, ""),
    "eval_interval": _eval_interval,
    "num_val_points": _num_val_points,
    "resume_path": _resume_path,
    "bottleneck_dim": _or_null("encoder.projection"),
}
HNM_RULES: dict[str, Rule] = {"hard_neg_start": _hard_neg_start}
ELIAS_RULES: dict[str, Rule] = {
    "lr_tf": _per_process("lr_tf", "optim.group_lr", "encoder"),
    "wl_dim": _or_null("method.wl_dim"),
    "lr_wl": _lr_wl,
    "A_init_path": _graph,
}
OVA_RULES: dict[str, Rule] = {
    "lr_tf": _per_process("lr_tf", "optim.group_lr", "encoder"),
    "lr_wl": _per_process("lr_wl", "optim.group_lr", "classifier"),
    "w_accumulation_steps": _only("w_accumulation_steps", 1),
    "use_swa": _only("use_swa", False),
}
READ_BY_NET: dict[str, tuple[dict[str, str], dict[str, Rule]]] = {
    "dist-de-all": (DEXML_MOVED, {}),
    "dist-clf-net": (DEXML_MOVED, {}),
    "dist-de-hnm": (DEXML_MOVED | HNM_MOVED, HNM_RULES),
    "ova-net": ({}, OVA_RULES),
    "elias-1": (ELIAS_MOVED, ELIAS_RULES),
    "elias-2": (ELIAS_MOVED, ELIAS_RULES),
}
NEW_NAMES = {
    **MOVED,
    **DEXML_MOVED,
    **HNM_MOVED,
    **ELIAS_MOVED,
    "lr": "optim.lr",
    "bsz": "train.batch_size",
    "net": "method.name",
    "loss_criterion": "loss.name",
    "loss_sample": "loss.sample",
    "topk_K": "loss.k",
    "weight_decay": "optim.weight_decay",
    "amp_encode": "train.mixed_precision",
    "eval_interval": "train.eval_interval",
    "num_val_points": "data.val_max_points",
    "resume_path": "run.start_from",
    "bottleneck_dim": "encoder.projection",
    "lr_tf": "optim.group_lr",
    "lr_wl": "optim.group_lr",
    "wl_dim": "method.wl_dim",
    "A_init_path": "method.graph",
    # a flat key now, for hints
    "hard_neg_start": "method.hard_neg_start",
    "loss": "loss.name",
}
KNOWN = {
    *MOVED,
    *DEXML_MOVED,
    *HNM_MOVED,
    *ELIAS_MOVED,
    *DROPPED,
    *FIXED,
    *RULES,
    *HNM_RULES,
    *ELIAS_RULES,
}


# -------------------------------- files
def load_any_config(
    path: str | Path,
    overrides: Sequence[str] | Mapping[str, Mapping] = (),
    *,
    expand: Callable[[Config], Config] | None = None,
    trusted: bool = False,
) -> Config:
    """`load_config` that takes flat configs too, and those of NGAME and DEXA
    (utils/config/legacy_json.py).

    Overrides do not reach into the `[key]`s of flat ones.
    """
    path = Path(path)
    values = read_yaml(path)
    if is_released(values):
        return load_released(path, values, overrides, expand)
    if not _is_flat(values, path):
        return load_config(path, overrides, expand=expand, trusted=trusted)
    log.info("%s is a config of the older DEXML or ELIAS code:", path)
    merged, origin = convert(*read_flat(path))
    return finish_config(merged, origin, overrides, expname=path.stem, where=str(path))


def _sections(values: Mapping[str, Any]) -> list[str]:
    return [
        key
        for key, content in values.items()
        if key in OUTSIDE or (key in SECTIONS and isinstance(content, Mapping))
    ]


def _is_flat(values: Mapping[str, Any], path: Path) -> bool:
    sections = _sections(values)
    flat = [k for k in values if k in KNOWN and k not in SECTIONS]
    if sections and flat:
        raise ConfigError(
            f"{path}: mixes sections ({', '.join(sections)}) with flat keys of the older code "
            f"({', '.join(flat)}); a config is of one kind or the other"
        )
    return bool(flat)


def read_flat(
    path: Path,
    seen: tuple[Path, ...] = (),
    opened: list[Path] | None = None,
) -> tuple[Values, dict[str, str]]:
    """The keys of a flat file after those of its dependencies, and the file that each comes from.

    Args:
        seen: the files that lead to this one; opened: all files so far.
    """
    opened = [] if opened is None else opened
    opened.append(path)
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `__dependency__:` goes in a circle")
    if len(opened) > MAX_FILES:
        raise ConfigError(
            f"{opened[0]}: its `__dependency__:` leads to more than {MAX_FILES} files, by way of "
            f"{path}"
        )
    values = read_yaml(path)
    flat = {}
    files = {}
    if sections := _sections(values):
        raise ConfigError(
            f"{path}: holds sections ({', '.join(sections)}), but {seen[-1]}, a flat config of "
            "the older code, depends on it; a config is of one kind or the other"
        )
    for name in str(values.get("__dependency__") or "").split(","):
        if name.strip():
            inherited, origins = read_flat(
                _dependency(name.strip(), path), (*seen, path.resolve()), opened
            )
            flat.update(inherited)
            files.update(origins)
    return {**flat, **values}, {**files, **dict.fromkeys(values, str(path))}


def _dependency(name: str, path: Path) -> Path:
    """Beside the file, else under a folder above it: the older code's paths count from its root
    folder."""
    for folder in (path.parent, *path.resolve().parents, Path()):
        if os.path.isfile(folder / name):  # False for a name that can be no file's
            return folder / name
    raise ConfigError(
        f"{path}: `__dependency__:` names '{name}': no such file beside it, under a folder above "
        "it or under the current one"
    )


# -------------------------------- conversion
def interpolate(flat: Values, files: Mapping[str, str]) -> Values:
    """Replace `[key]` inside strings by that key's value, its own references replaced first."""

    def resolve(key: str, chain: tuple[str, ...]) -> Any:
        def value_of(match: re.Match) -> str:
            name = match[1]
            if name not in flat:
                raise ConfigError(
                    f"{files[key]}: {key} refers to [{name}], which is no "
                    f"key{nearest(name, list(flat))}"
                )
            if name in chain:
                raise ConfigError(
                    f"{files[key]}: references go in a circle: {' -> '.join((*chain, name))}"
                )
            return shown(resolve(name, (*chain, name)))

        if not isinstance(flat[key], str):
            return flat[key]
        whole = re.sub(r"\[(\w+)\]", value_of, flat[key])
        if len(whole) > MAX_TEXT:
            raise ConfigError(
                f"{files[key]}: {key} has more than {MAX_TEXT:,} characters, its references "
                "replaced"
            )
        return whole

    return {key: resolve(key, (key,)) for key in flat}


def convert(flat: Values, files: Mapping[str, str]) -> tuple[dict[str, Values], dict[str, str]]:
    """Flat keys -> ({section: {key: value}}, where each "section.key" comes from); every key is
    logged."""
    for key in flat:
        if key not in KNOWN:
            raise ConfigError(f"{files[key]}: unknown key '{key}'{nearest(key, sorted(KNOWN))}")
    if (net := str(flat.get("net"))) not in METHOD_OF_NET:
        where = files.get("net", next(iter(files.values())))
        raise ConfigError(
            f"{where}: net must be one of {', '.join(METHOD_OF_NET)}, got {shown(net)}"
        )
    flat = interpolate(flat, files)
    merged = {}
    origin = {}
    for key in flat:
        try:
            values, note = _convert_key(key, flat)
        except ConfigError as error:
            raise ConfigError(f"{files[key]}: {error}") from None
        _put(values, note, f"{key}: {shown(flat[key])}", merged)
        origin |= dict.fromkeys(values, f"{files[key]} ({key})")
    _put(
        _propensity(str(flat.get("dataset", ""))),
        "the older code's rule on names",
        "no key",
        merged,
    )
    if net in ("elias-1", "elias-2", "ova-net"):
        _put({"loss.name": "bce"}, "the loss of this net", "no key", merged)
    _put({"optim.clip_norm": None}, "the older code does not clip gradients", "no key", merged)
    return merged, origin


def _convert_key(key: str, flat: Values) -> Converted:
    own_moved, own_rules = READ_BY_NET[flat["net"]]
    moved, rules = MOVED | own_moved, RULES | own_rules
    if key in DROPPED:
        return {}, DROPPED[key]
    if key in FIXED:
        allowed, reason = FIXED[key]
        if flat[key] not in allowed:
            allowed = " or ".join(map(repr, allowed))
            raise ConfigError(f"{key} {flat[key]!r} has no counterpart, only {allowed}: {reason}")
        return {}, reason
    if key in moved:
        return {moved[key]: flat[key]}, ""
    if key in rules:
        return rules[key](flat[key], flat)
    return {}, f"net {flat['net']} does not read it"


def _put(values: Values, note: str, came: str, merged: dict[str, Values]) -> None:
    for target, value in values.items():
        section, key = target.split(".")
        place = merged.setdefault(section, {})
        place[key] = {**place.get(key, {}), **value} if isinstance(value, dict) else value
    say(came, values, note)


def _propensity(dataset: str) -> Values:
    """The older code's choice of constants, so that PSP@k stay comparable; it had no keys for
    them."""
    name = dataset.lower()
    wikipedia = "wiki" in name and "wikiseealso" not in name
    a, b = (0.6, 2.6) if "amazon" in name else (0.5, 0.4) if wikipedia else (0.55, 1.5)
    return {"data.propensity_a": a, "data.propensity_b": b}
