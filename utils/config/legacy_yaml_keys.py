"""Flat keys of the older DEXML and ELIAS code: new names of some, reasons why others are dropped.

Keys whose values change too stand in utils/config/legacy_yaml_rules.py.
"""

from __future__ import annotations

from typing import Any

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
DROPPED = {  # keys without a meaning here, and why
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
NEW_NAMES = {  # for hints: what a flat key became, even where its value changes too
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
    "hard_neg_start": "method.hard_neg_start",
    "loss": "loss.name",
}
