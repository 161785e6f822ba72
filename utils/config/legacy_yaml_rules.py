"""Flat keys of the older DEXML and ELIAS code whose values change too: a rule for each."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.config.config import ConfigError, nearest
from utils.config.graph_places import approx_file, cluster_file
from utils.config.legacy_log import log, shown
from utils.config.legacy_yaml_keys import (
    DEXML_MOVED,
    DROPPED,
    ELIAS_MOVED,
    FIXED,
    HNM_MOVED,
    LOSSES,
    METHOD_OF_NET,
    MOVED,
)

Values = dict[str, Any]
Converted = tuple[Values, str]  # {"section.key": value}, and a note for the log
Rule = Callable[[Any, Values], Converted]  # of a key's value and all keys


def _net(net: str, flat: Values) -> Converted:
    mined = {"in-batch": "in-batch", "all": "all"}.get(str(flat.get("neg_type")), "hnm")
    pools = {"dist-de-all": "all", "dist-de-hnm": mined}
    values = {"method.name": METHOD_OF_NET[net]}
    if net in pools:
        values["method.pool"] = pools[net]
    return values, ""


def _loss(name: str, flat: Values) -> Converted:
    of_nets = {"ova-net": "ova-bce", "elias-1": "elias-loss", "elias-2": "elias-loss"}
    expected = of_nets.get(flat["net"], "sim-loss")
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
    if criterion == "softmax" and sample:
        # Absent positives would turn softmax into decoupled softmax.
        return {"loss.sample": False}, "unsampled positives stay in its denominator"
    always = criterion == "topk" and isinstance(flat.get("topk_K", 5), int)
    note = "top-k sampled in any case" if always and not sample else ""
    return {"loss.sample": sample or always}, note


def _per_process(
    key: str,
    target: str,
    group: str | None = None,
) -> Rule:
    """Keep, with a warning, a number that the older code multiplies by its number of processes."""

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
    """The older code mines, for later epochs, when the first epoch >= start that it evaluates ends.

    What is no whole number is left to the typed section, which refuses it.
    """
    every = flat.get("eval_interval", 1)
    first = start
    if type(start) is int and type(every) is int and every > 0:
        first = -(-start // every) * every + 1
    return {"method.hard_neg_start": first}, "the epoch after its first mining"


def _num_val_points(count: int, flat: Values) -> Converted:
    if not count:
        log.warning(
            "num_val_points %s made the older code choose its best checkpoint on the TEST split; "
            "here a validation split is held out of the training points",
            count,
        )
        return {}, "the default validation split"
    values = {"data.val_max_points": count, "data.val_fraction": 0.5}
    return values, "that many, of at most half the points"


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
    """Where ours leave the graph that the older steps write into a run's folder.

    The run that needs it looks there by itself: `cluster` for cmat.npz, `approx` for A_approx.npz.
    """
    if not path:
        return {}, "the method's own graph"
    if not isinstance(path, str):
        return {"method.graph": path}, ""  # which the typed section refuses
    file = Path(os.path.normpath(path))
    if file.is_file() or file.name not in ("cmat.npz", "A_approx.npz"):
        return {"method.graph": path}, ""
    if file.name == "cmat.npz":
        this_run = Path("Results", *(str(flat.get(k)) for k in ("project", "dataset", "expname")))
        made = cluster_file(file.parent)
        graph = "cluster" if file.parent == this_run else str(made)
        return {"method.graph": graph}, f"{made}, by gen_cluster_A"
    start = Path(os.path.normpath(_folder_of(flat.get("resume_path")) or "."))
    made = approx_file(file.parent)
    graph = "approx" if file.parent == start else str(made)
    return {"method.graph": graph}, f"{made}, by gen_approx_A"


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
