"""`method.micro_batch_tokens` in whole runs of the methods that train an encoder."""

import json

import pytest

import train

METHODS = {
    # in micro-batches on both sides: its first gradient is zero, and what is skipped does not decay
    "ova": {"name": "ova", "tau": 0.05, "gc_batch_size": 8},
    "dexml": {"name": "dexml", "pool": "hnm"},
    "elias-1": {"name": "elias-1", "max_leaf": 5, "tau": 0.1, "init": "labels"},
    "xc": {"name": "xc", "freeze": False, "dropout": 0.0, "tau": 0.05, "batches": "random"},
}


@pytest.mark.parametrize("name", METHODS)
def test_a_budget_of_tokens_changes_no_result(make_config, tiny_encoder, tmp_path, name):
    found = []
    for tokens in (None, 40):
        sections = {
            "encoder": {"name": tiny_encoder, "dropout": 0.0},
            "method": {**METHODS[name], "micro_batch_tokens": tokens},
            "train": {"epochs": 3, "batch_size": 16},
            "optim": {"lr": 5e-3, "eps": 1e-4},  # a gradient of rounding errors alone moves nothing
            "run": {"dir": str(tmp_path / f"by-{tokens}")},
        }
        if name == "xc":
            first = {"name": "first", "method": {"name": "dexml"}}
            sections["stages"] = [first, {"name": "rows"}]
        folder = train.fit(make_config(**sections))
        entries = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        found.append([entry["loss"] for entry in entries if entry["kind"] == "train"])
    assert len(found[0]) == 3
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[0][2] < found[0][0]


def test_a_run_goes_on_with_another_budget(make_config, tiny_encoder):
    def fit(resume, **sections):
        encoder = {"name": tiny_encoder, **sections.pop("encoder", {})}
        return train.fit(make_config(encoder=encoder, **sections), resume=resume)

    folder = fit(False, train={"epochs": 2, "stop_epoch": 1})
    fit(
        True,
        train={"epochs": 2},
        method={"micro_batch_tokens": 40},
        encoder={"packing": True},
    )
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["kind"] == "train" for line in lines) == 2
