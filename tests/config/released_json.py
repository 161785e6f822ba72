"""The published JSON configs of the NGAME and DEXA code for LF-AmazonTitles-131K."""

import json
from pathlib import Path

TOKENS = "{0}_input_ids.npy,{0}_attention_mask.npy"
GLOBAL = {
    "dataset": "LF-AmazonTitles-131K",
    "feature_type": "sequential",
    "num_labels": 131073,
    "arch": "STransformer",
    "A": 0.6,
    "B": 2.6,
    "share_weights": True,
    "surrogate_method": 1,
    "max_length": 32,
    "embedding_dims": 768,
    "top_k": 200,
    "num_points": 294805,
    "beta": 1.0,
    "eval_method": "score_fusion",
    "encoder_name": "msmarco-distilbert-base-v4",
    "save_predictions": True,
    "lbl_feat_fname": TOKENS.format("lbl"),
    "trn_feat_fname": TOKENS.format("trn_doc"),
    "val_feat_fname": TOKENS.format("tst_doc"),
    "tst_feat_fname": TOKENS.format("tst_doc"),
    "trn_label_fname": "trn_X_Y.txt",
    "val_label_fname": "tst_X_Y.txt",
    "tst_label_fname": "tst_X_Y.txt",
    "trn_filter_fname": "filter_labels_train.txt",
    "val_filter_fname": "filter_labels_test.txt",
    "tst_filter_fname": "filter_labels_test.txt",
}
SIAMESE = {
    "num_epochs": 300,
    "warmup_steps": 100,
    "batch_type": "doc",
    "loss": "triplet_margin_ohnm",
    "model_type": "siamese",
    "network_type": "siamese",
    "metric": "cosine",
    "validate_after": 50,
    "learning_rate": 0.0002,
    "batch_size": 1600,
    "normalize": True,
    "margin": 0.3,
    "optim": "AdamW",
    "loss_num_positives": 1,
    "loss_num_negatives": 10,
    "loss_agressive": True,
    "init": "auto",
    "validate": True,
    "save_intermediate": True,
    "sampling_asynchronous": True,
    "sampling_type": "implicit",
    "sampling_refresh_interval": 5,
    "sampling_threads": 8,
    "use_amp": True,
    "inference_method": None,
}
EXTREME = {
    "num_epochs": 100,
    "warmup_steps": 500,
    "batch_type": "doc",
    "optim": "Adam",
    "loss": "triplet_margin_ohnm",
    "loss_num_positives": 3,
    "loss_num_negatives": 5,
    "loss_agressive": True,
    "learning_rate": 0.001,
    "batch_size": 2048,
    "sampling_refresh_interval": 5,
    "sampling_type": "implicit",
    "num_centroids": 1,
    "efC": 300,
    "validate_after": 25,
    "efS": 300,
    "M": 100,
    "num_nbrs": 300,
    "margin": 0.2,
    "ann_threads": 12,
    "ann_method": "hnswlib",
    "beta": 0.5,
    "surrogate_mapping": None,
    "freeze_encoder": True,
    "validate": True,
    "model_type": "xc",
    "network_type": "xc",
    "normalize": True,
    "init": "intermediate",
    "save_intermediate": False,
    "inference_method": "dual_mips",
    "use_amp": False,
}
DEXA = {
    "global": GLOBAL | {"aux_num_vectors": 66536, "aux_num_hlp_vectors": 1000},
    "siamese": SIAMESE
    | {
        "sampling_curr_epochs": [10, 25, 50, 75, 100, 125, 150, 200],
        "sampling_init_cluster_size": 4,
        "weight_decay": 0.01,
    },
    "extreme": EXTREME | {"sampling_curr_epochs": [20, 1000], "sampling_init_cluster_size": 32},
}
NGAME = {
    "global": GLOBAL,
    "siamese": SIAMESE
    | {
        "sampling_curr_epochs": [10, 20, 25, 50, 75, 100, 125, 150, 200],
        "sampling_init_cluster_size": 1,
    },
    "extreme": EXTREME | {"sampling_curr_epochs": [10, 15, 20, 25, 30, 35, 40]},
}


def written(folder: Path, values: dict, name: str = "LF-AmazonTitles-131K.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    # tabs, as some of the published have
    (folder / name).write_text(json.dumps(values, indent="\t"))
    return folder / name
