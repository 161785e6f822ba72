"""Keys of the released NGAME and DEXA code: a rule for each, by section."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from utils.config.config import ConfigError, nearest
from utils.config.legacy_log import shown

Values = dict[str, Any]
Converted = tuple[Values, str]  # {"section.key" or "stage:section.key": value}, a note for the log
Rule = Callable[[Any, Values], Converted]  # of a value and all keys of its section, inherited too
XC = "classifiers:"  # before a key: of that stage; without, of the whole config
FUSED = "fused:"


def _move(*targets: str) -> Rule:
    return lambda value, settings: (dict.fromkeys(targets, value), "")


def _drop(reason: str) -> Rule:
    return lambda value, settings: ({}, reason)


def _only(*allowed: Any, reason: str) -> Rule:
    """A key whose other values have no counterpart: refused rather than ignored."""

    def convert(value: Any, settings: Values) -> Converted:
        if not any(value == known and type(value) is type(known) for known in allowed):
            raise ConfigError(
                f"{shown(value)} has no counterpart, only {' or '.join(map(shown, allowed))}: "
                f"{reason}"
            )
        return {}, reason

    return convert


def _encoder_name(name: Any, settings: Values) -> Converted:
    """A name alone is one of sentence-transformers'."""
    is_alone = isinstance(name, str) and "/" not in name
    return {"encoder.name": f"sentence-transformers/{name}" if is_alone else name}, ""


def _loss(name: Any, settings: Values) -> Converted:
    if name != "triplet_margin_ohnm":
        raise ConfigError(
            f"{shown(name)} has no counterpart, only "
            f"triplet_margin_ohnm{nearest(name, ['triplet_margin_ohnm'])}"
        )
    return {}, "loss.name triplet in both"


def _clusters(prefix: str) -> Rule:
    """Clusters of 1 are no clusters: they begin where they have doubled."""

    def convert(epochs: Any, settings: Values) -> Converted:
        size = settings.get("sampling_init_cluster_size", 1)
        is_whole = isinstance(epochs, list) and type(size) is int and size > 0
        while is_whole and size < 2 and epochs:
            epochs = epochs[1:]
            size *= 2
        if epochs == []:
            return {f"{prefix}method.batches": "random"}, "clusters of one query"
        return {f"{prefix}method.curr_epochs": epochs, f"{prefix}method.cluster_size": size}, ""

    return convert


def _optimizer(name: Any, settings: Values) -> Converted:
    """Adam there is SparseAdam, without decay."""
    if name not in ("Adam", "AdamW"):
        raise ConfigError(
            f"{shown(name)} has no counterpart, only Adam or AdamW: AdamW is the only optimizer"
        )
    return {}, "AdamW, without decay for Adam"


def _weight_decay(prefix: str) -> Rule:
    def convert(value: Any, settings: Values) -> Converted:
        decay = 0.0 if settings.get("optim") == "Adam" else value
        return {f"{prefix}optim.weight_decay": decay}, ""

    return convert


def _batch_size(value: Any, settings: Values) -> Converted:
    values = {"train.batch_size": value, "method.gc_batch_size": value}
    return values, "and so many texts are encoded at once"


def _precision(value: Any, settings: Values) -> Converted:
    if isinstance(value, bool):
        value = "fp16" if value else "no"
    return {"train.mixed_precision": value}, ""


def _version(version: Any, settings: Values) -> Converted:
    if not re.fullmatch(r"[\w.-]{1,100}", str(version)):
        raise ConfigError(f"must be a plain word or number, got {shown(version)[:100]}")
    return {}, "a part of the run's name"


def _file(*names: str | None) -> Rule:
    there = "files of a data set have fixed names (python -m utils.prepare)"
    return _only(*names, reason=there)


def _filters(*names: str) -> Rule:
    """A file that is named must be there."""
    known = _file(*names, "", None)

    def convert(value: Any, settings: Values) -> Converted:
        note = known(value, settings)[1]
        return ({"data.filters": "required"}, "") if value else ({}, note)

    return convert


TOKENS = "{0}_input_ids.npy,{0}_attention_mask.npy"
GLOBAL: dict[str, Rule] = {
    "dataset": _move("data.name"),
    "max_length": _move("data.max_len"),
    "encoder_name": _encoder_name,
    "A": _move("data.propensity_a"),
    "B": _move("data.propensity_b"),
    "aux_num_vectors": _move("method.num_vectors"),
    "aux_num_hlp_vectors": _move("method.num_head_vectors"),
    "top_k": _move("eval.top_k"),
    "beta": _move(f"{FUSED}method.embedding_weight", f"{FUSED}method.tree_weight"),
    "type": _move("run.project"),
    "seed": _move("run.seed"),
    "version": _version,
    "feature_type": _only("sequential", "seq", reason="texts are sequences of tokens"),
    "arch": _only("STransformer", reason="encoder.name says which"),
    "share_weights": _only(True, reason="one encoder for texts and labels"),
    "surrogate_method": _only(
        0, 1, reason="labels without points stay; their texts speak for them"
    ),
    "eval_method": _only("score_fusion", reason="the stage fused"),
    "num_labels": _drop("the data set says"),
    "num_points": _drop("the data set says"),
    "embedding_dims": _drop("the encoder says"),
    "save_predictions": _drop("eval.py writes them"),
    "trn_label_fname": _file("trn_X_Y.txt"),
    "val_label_fname": _file("tst_X_Y.txt"),
    "tst_label_fname": _file("tst_X_Y.txt"),
    "lbl_feat_fname": _file(TOKENS.format("lbl")),
    "trn_feat_fname": _file(TOKENS.format("trn_doc")),
    "val_feat_fname": _file(TOKENS.format("tst_doc")),
    "tst_feat_fname": _file(TOKENS.format("tst_doc")),
    "trn_filter_fname": _filters("filter_labels_train.txt"),
    "val_filter_fname": _file("filter_labels_test.txt", "filter_labels_text.txt", "", None),
    "tst_filter_fname": _filters("filter_labels_test.txt", "filter_labels_text.txt"),
}
SHARED: dict[str, Rule] = {  # of siamese and extreme
    "batch_type": _only("doc", reason="batches are of texts"),
    "metric": _only("cosine", reason="encoder.normalize"),
    "normalize": _only(True, reason="encoder.normalize"),
    "loss": _loss,
    "optim": _optimizer,
    "loss_agressive": _only(True, reason="negatives are weighted by a softmax"),
    "sampling_type": _only("implicit", reason="method.pool in-batch"),
    "sampling_asynchronous": _drop("embeddings of the epoch before are clustered"),
    "sampling_async": _drop("embeddings of the epoch before are clustered"),
    "sampling_init_cluster_size": _drop("see sampling_curr_epochs"),
    "sampling_threads": _drop("run.threads is of the whole process"),
    "validate": _drop("validation points are held out of the training split"),
    "save_intermediate": _drop("each stage keeps its model"),
}
SIAMESE = SHARED | {
    "num_epochs": _move("train.epochs"),
    "batch_size": _batch_size,
    "learning_rate": _move("optim.lr"),
    "warmup_steps": _move("optim.warmup"),
    "validate_after": _move("train.eval_interval"),
    "weight_decay": _weight_decay(""),
    "margin": _move("loss.margin"),
    "loss_num_negatives": _move("loss.hardest_negatives"),
    "loss_num_positives": _only(1, reason="loss.sample takes one positive a text"),
    "sampling_curr_epochs": _clusters(""),
    "sampling_refresh_interval": _move("method.cluster_interval"),
    "use_amp": _precision,
    "init": _only("auto", reason="the pretrained encoder"),
    "model_type": _only("siamese", reason="the stage encoder"),
    "network_type": _only("siamese", reason="the stage encoder"),
    "inference_method": _only(None, "mips", reason="search of the label embeddings"),
}
EXTREME = SHARED | {
    "num_epochs": _move(f"{XC}train.epochs"),
    "batch_size": _move(f"{XC}train.batch_size"),
    "learning_rate": _move(f"{XC}optim.lr"),
    "warmup_steps": _move(f"{XC}optim.warmup"),
    "validate_after": _move(f"{XC}train.eval_interval"),
    "weight_decay": _weight_decay(XC),
    "margin": _move(f"{XC}loss.margin"),
    "loss_num_negatives": _move(f"{XC}loss.hardest_negatives"),
    "loss_num_positives": _move(f"{XC}loss.hardest_positives"),
    "sampling_curr_epochs": _clusters(XC),
    "sampling_refresh_interval": _move(f"{XC}method.cluster_interval"),
    "freeze_encoder": _move(f"{XC}method.freeze"),
    "num_nbrs": _move(f"{FUSED}method.candidates"),
    "M": _move("eval.hnsw_m"),
    "efC": _move("eval.hnsw_ef_construction"),
    "efS": _move("eval.hnsw_ef"),
    "ann_method": _only("hnswlib", "brute", reason="search is exact; --eval.index hnsw is not"),
    "ann_threads": _drop("run.threads is of the whole process"),
    "beta": _drop("the released code reads the one of global"),
    "num_centroids": _only(1, reason="a row a label"),
    "surrogate_mapping": _only(None, reason="all labels are kept"),
    "use_amp": _drop(
        "classifiers are trained in float32, on embeddings in the precision of siamese"
    ),
    "init": _only("intermediate", reason="the encoder of the stage before"),
    "model_type": _only("xc", reason="the stage classifiers"),
    "network_type": _only("xc", reason="the stage classifiers"),
    "inference_method": _only("dual_mips", reason="both are searched by the stage fused"),
}
RULES = {"global": GLOBAL, "siamese": SIAMESE, "extreme": EXTREME}
