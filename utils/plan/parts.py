"""What a process holds while a method is trained, part by part, and the peak of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

MB, GB = 1 << 20, 1 << 30
KEPT_BLOCK = 32 * MB  # freed blocks below this size stay with the process
LOADING, STEP, UPDATE, EVALUATION = "loading", "step", "update", "evaluation"
ALWAYS = (LOADING, STEP, UPDATE, EVALUATION)
RUNNING = (STEP, UPDATE, EVALUATION)


@dataclass(frozen=True)
class Part:
    """Memory of one kind.

    Attributes:
        bytes: of one process.
        phases: of a run in which it is held.
        block: bytes of one of its tensors.
        smaller: what makes it smaller, for advice.
        on_host: it lies in the host's memory even where a GPU computes.
        sure: False: it may be smaller, or leave memory for disk: no reason to refuse a run.
    """

    name: str
    bytes: float
    phases: tuple[str, ...] = ALWAYS
    block: float = KEPT_BLOCK
    smaller: str = ""
    on_host: bool = False
    sure: bool = True


@dataclass(frozen=True)
class Needs:
    """What a method holds and sends beside the program and its data.

    Attributes:
        parameters: how many are trained or read, over all processes, by name.
        parts: memory of a process; none for a method that has no plan.
        messages: bytes that a process sends in a step, by name.
        left_out: what the parts leave out, a sentence; empty where they are whole.
    """

    parameters: dict[str, int] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    messages: dict[str, float] = field(default_factory=dict)
    left_out: str = ""


def peak(parts: Iterable[Part]) -> int:
    """Bytes of the largest phase.

    Small blocks are not given back, so their largest phase and that of the large ones add up.
    """
    small: list[Part] = []
    large: list[Part] = []
    for part in parts:
        (small if part.block < KEPT_BLOCK else large).append(part)
    return _largest_phase(small) + _largest_phase(large)


def _largest_phase(parts: list[Part]) -> int:
    return max(int(sum(p.bytes for p in parts if phase in p.phases)) for phase in ALWAYS)
