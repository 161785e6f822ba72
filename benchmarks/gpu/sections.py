"""The sections of `run`: their cases, and how long each may take."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.gpu import correctness, loss_speed, step_speed
from benchmarks.gpu.cases import CASES
from benchmarks.gpu.place import Place
from benchmarks.gpu.report import Row


@dataclass(frozen=True)
class Section:
    """Some cases of one kind.

    Attributes:
        seconds: that all its cases may take together.
        cases: their names.
        measure: one of them.
    """

    seconds: float
    cases: tuple[str, ...]
    measure: Callable[[Place, str], Row]


def _section(seconds: float, cases: Iterable[str], measure: Callable[[Place, str], Row]) -> Section:
    return Section(seconds, tuple(cases), measure)


# 360 seconds in all
SECTIONS: dict[str, Section] = {
    "equality": _section(100, CASES, correctness.equality),
    "resume": _section(60, correctness.RESUME_CASES, correctness.resume),
    "precision": _section(50, correctness.PRECISION_CASES, correctness.precision),
    "losses": _section(25, loss_speed.LOSS_CASES, loss_speed.losses),
    "dexml": _section(50, step_speed.DEXML_CASES, step_speed.dexml),
    "ngame": _section(35, step_speed.NGAME_CASES, step_speed.ngame),
    "elias": _section(40, step_speed.ELIAS_CASES, step_speed.elias),
}
