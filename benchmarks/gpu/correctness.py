"""Sections `equality`, `resume` and `precision`: does a card compute what a CPU does?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.cases import CASES, case_config
from benchmarks.gpu.place import Place, Values
from benchmarks.gpu.report import Row
from benchmarks.gpu.training import relative, trained
from engine.conformance.case import state_of
from engine.evaluator import evaluate_run

LOSS = 1e-3  # by how much a loss may differ, beside itself
METRIC = 3.0  # points of P@5 of a run whose last bits differ
PRECISION = 0.03  # of the last steps' loss in fp16 or bf16, beside float32's
LAST = 4  # steps

# -------------------------------- equality


def computed(
    place: Place,
    case: str,
    name: str,
    *more: Values,
) -> dict[str, Any]:
    """What a case comes to: its losses, and P@5 of the test points."""
    folder, losses = trained(case_config(place, case, name, *more))
    return {"losses": losses, "P@5": evaluate_run(folder)["P@5"]}


def equality(place: Place, case: str) -> Row:
    """The first losses, and P@5 after two epochs, as on a CPU: float32, TF32 off."""
    expected = json.loads(place.expected_file.read_text())[case]
    found = computed(place, case, f"equality {case}", CASES[case].otherwise)
    as_many = len(found["losses"]) == len(expected["losses"])
    pairs = [*zip(found["losses"], expected["losses"], strict=False)][: CASES[case].steps]
    worst = max((relative(*pair) for pair in pairs), default=0.0)
    gap = abs(found["P@5"] - expected["P@5"])
    return {
        "steps": len(pairs),
        "worst difference of a loss": worst,
        "allowed": LOSS,
        "P@5": found["P@5"],
        "P@5 on a CPU": expected["P@5"],
        "ok": as_many and worst <= LOSS and gap <= METRIC,
    }


# -------------------------------- resume

RESUMED = (
    "dexml, transformer",
    "dexml, bag in micro-batches",
    "dexa",
    "siamesexml",
    "ova",
    "xc",
    "elias-2",
)
KINDS: dict[str, Values] = {
    "deterministic": {"train": {"deterministic": True}},
    "usual": {},
    "fp16, deterministic": {"train": {"deterministic": True, "mixed_precision": "fp16"}},
}
RESUME_CASES = {
    **{f"{case}: deterministic": (case, "deterministic") for case in RESUMED},
    "dexml, transformer: usual": ("dexml, transformer", "usual"),
    "dexa: usual": ("dexa", "usual"),
    "dexa: fp16, deterministic": ("dexa", "fp16, deterministic"),
}


def resume(place: Place, name: str) -> Row:
    """A run that stopped after its first epoch and went on, beside one that was never stopped."""
    case, kind = RESUME_CASES[name]
    dropout: Values = {"encoder": {"dropout": 0.1}}
    parts = (dropout, KINDS[kind])
    # the learning rates are those of two epochs, so the steps of both runs are the same
    half: Values = {"train": {"stop_epoch": 1}}
    whole, losses = trained(case_config(place, case, f"resume {name} whole", *parts))
    run = f"resume {name} stopped"
    trained(case_config(place, case, run, *parts, half))
    stopped, rest = trained(case_config(place, case, run, *parts), resume=True)
    last = losses[len(losses) - len(rest) :]
    pairs = zip(rest, last, strict=True)
    worst = max((relative(*pair) for pair in pairs), default=float("inf"))
    others = different_tensors(whole, stopped)
    exact = "deterministic" in kind
    return {
        "steps": len(rest),
        "worst difference of a loss": worst,
        "allowed": 0.0 if exact else LOSS,
        "other tensors": len(others),
        "ok": worst == 0 and not others if exact else worst <= LOSS,
    }


def different_tensors(one: Path, other: Path) -> list[str]:
    """Names of tensors of two last checkpoints, random states included, that are not equal."""
    first = state_of(one)
    second = state_of(other)
    names = first.keys() | second.keys()
    return [
        name
        for name in sorted(names)
        if name not in first or name not in second or not torch.equal(first[name], second[name])
    ]


# -------------------------------- precision

PRECISE = ("dexml, transformer", "dexml, bag in micro-batches", "dexa", "ova", "elias-2")
CLIPS = {"clipped": 1.0, "not clipped": None}
PRECISION_CASES = {f"{case}: {clip}": (case, clip) for case in PRECISE for clip in CLIPS}


def precision(place: Place, name: str) -> Row:
    """The last losses in float32, fp16 and bf16."""
    case, clip = PRECISION_CASES[name]
    ends = {}
    for kind in ("no", "fp16", "bf16"):
        more: Values = {
            "train": {"mixed_precision": kind},
            "optim": {"clip_norm": CLIPS[clip]},
        }
        config = case_config(place, case, f"precision {name} {kind}", more)
        losses = trained(config)[1][-LAST:]
        ends[kind] = sum(losses) / len(losses)
    worst = max(relative(ends[kind], ends["no"]) for kind in ("fp16", "bf16"))
    return {
        "last loss in float32": ends["no"],
        "in fp16": ends["fp16"],
        "in bf16": ends["bf16"],
        "worst difference": worst,
        "allowed": PRECISION,
        "ok": worst <= PRECISION,
    }
