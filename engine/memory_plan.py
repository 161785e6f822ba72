"""Will it fit? The memory and messages of a run, worked out before anything is loaded.

    python train.py CONFIG --plan [--processes G]
    python train.py CONFIG --plan --points 300000 --labels 131000 --tokens 12 --gpu 80   # elsewhere

Reads configs, headers of .npz and .safetensors files, offsets of token files or, where there are
none yet, the lengths of a text file's first lines: no weights, no text, no matrix. Every method
says its own parts (`Recipe.needs`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from engine.planning import with_resolved_encoder
from utils.cards import USE_CPU
from utils.config.config import Config, stage_config
from utils.config.methods import method_class
from utils.errors import InputError
from utils.plan.run_sizes import HERE, RunSizes
from utils.plan.sizes import Assumed
from utils.plan.terms import program_and_data
from utils.plan.verdict import Plan, advice, describe, impossible, machine, size_text


def plan(
    config: Config,
    processes: int = 1,
    assumed: Assumed = HERE,
    place: str = "",
) -> Plan:
    """What one of `processes` needs to train `config`, one stage of it if it has stages.

    Args:
        assumed: sizes of a data set, or a card, that is not here.
        place: named behind method and data, such as the stage.
    Raises:
        InputError: a file is missing or is not what it should be.
    """
    config = with_resolved_encoder(config)
    sizes = RunSizes(config, processes, assumed)
    needs = method_class(config.method.name).needs(config, sizes)
    parts = [*program_and_data(sizes), *needs.parts] if needs.parts else []
    return Plan(
        f"{config.method.name} on {config.data.name}{place}{assumed.described}",
        processes,
        sizes.cuda,
        needs,
        tuple(part for part in parts if part.bytes >= 1),
    )


def check_it_fits(config: Config, processes: int = 1) -> None:
    """Refuse training that needs more than the machine has.

    Only where that is certain: with room left for estimates that are too high, and never for
    methods without a plan.

    Raises:
        InputError: naming the largest part and what to change.
    """
    found = plan(config, processes)
    # the others have their own memory
    here = min(processes, int(os.environ.get("LOCAL_WORLD_SIZE", processes)))
    if found.memory and (problem := impossible(found, machine(), here)):
        raise InputError(problem)


def report(
    config: Config,
    processes: int,
    assumed: Assumed = HERE,
) -> str:
    """`describe` of every stage.

    Raises:
        InputError: one cannot fit; with the tables until then.
    """
    has = machine(assumed)
    texts = []
    for stage in config.stages or ({},):
        current = stage_config(config, stage) if stage else config
        place = f", stage {stage['name']}" if stage else ""
        found = plan(current, processes, assumed, place)
        texts.append(describe(found, has))
        if found.memory and (problem := impossible(found, has)):
            raise InputError("\n\n".join([*texts, problem]))
    return "\n\n".join(texts)


# -------------------------------- where it did not


@contextlib.contextmanager
def training_memory(config: Config, processes: int) -> Iterator[None]:
    """InputError with the plan's advice where a GPU runs out of memory in training inside."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(_planned(config, processes)) from error


@contextlib.contextmanager
def scoring_memory(config: Config) -> Iterator[None]:
    """InputError that names the keys where a GPU runs out of memory in scoring inside."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        options = config.eval
        raise InputError(
            f"a GPU of {_card()} ran out of memory: it shrinks with eval.batch_size, now "
            f"{options.batch_size}, or eval.label_block, now {options.label_block}; {USE_CPU}=true "
            "computes on the CPU"
        ) from error


def _planned(config: Config, processes: int) -> str:
    """What a run that ran out of memory was planned to take, and what makes it smaller."""
    found = plan(config, processes)
    parts = found.on_device
    if not any(part.smaller for part in parts):
        return (
            f"a GPU of {_card()} ran out of memory with {found.name}, which has no plan of it; it "
            "shrinks with train.batch_size, eval.batch_size or eval.label_block"
        )
    return (
        f"a GPU of {_card()} ran out of memory with {found.name}, which by --plan takes "
        f"{size_text(found.device)} of it; {advice(parts)}"
    )


def _card() -> str:
    """The memory of a card of this machine."""
    return size_text(machine()["gpu"])
