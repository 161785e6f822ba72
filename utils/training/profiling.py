"""What a few steps spend their time on: a trace to open, and host time and waits in metrics.jsonl.

    with profiled(folder, is_on) as profile:
        for ...:
            ...
            profile.step()
    profile.values()      # {"host_ms": ..., "waits": ...} of a step

The trace is for https://ui.perfetto.dev or chrome://tracing.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.profiler import ProfilerActivity, profile, schedule

log = logging.getLogger("train")
SKIPPED = 3  # steps before: first steps allocate and compile
WARMING = 1  # steps that the profiler runs and does not keep
KEPT = 5  # steps
TRACE = "profile.json"
STEP = "ProfilerStep"  # what the profiler calls a step
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")


class Span(Protocol):
    """Start and end of an event, in microseconds."""

    start: float
    end: float


class Event(Protocol):
    """One event of a trace, as torch's profiler has it."""

    name: str
    time_range: Span


class Profile:
    """Counts steps; knows what was measured when enough of them were taken."""

    def __init__(self, profiler: Any = None) -> None:
        """profiler: torch's; None = nothing is profiled."""
        self._profiler = profiler
        self._values: dict[str, float] = {}

    def step(self) -> None:
        """A step has ended."""
        if self._profiler is not None:
            self._profiler.step()

    def measured(self, events: Iterable[Event]) -> None:
        """Take what a trace tells."""
        self._values = of_steps(events)

    def values(self) -> dict[str, float]:
        """For metrics.jsonl; {} where nothing was profiled or the epoch was too short."""
        return self._values


@contextlib.contextmanager
def profiled(folder: Path, is_on: bool) -> Iterator[Profile]:
    """Profile a few of the steps that are taken inside; the trace goes into `folder`."""
    if not is_on:
        yield Profile()
        return

    def keep(profiler: Any) -> None:
        events = profiler.events()
        if sum(event.name.startswith(STEP) for event in events) < KEPT:
            return  # the epoch has ended
        path = folder / TRACE
        profiler.export_chrome_trace(str(path))
        found.measured(events)
        log.info("profile of %d steps: %s", KEPT, path)

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    plan = schedule(skip_first=SKIPPED, wait=0, warmup=WARMING, active=KEPT, repeat=1)
    profiler = profile(activities=activities, schedule=plan, on_trace_ready=keep)
    found = Profile(profiler)
    with profiler:
        yield found
    if not found.values():
        log.warning(
            "run.profile: an epoch of fewer than %d steps is not profiled",
            SKIPPED + WARMING + KEPT,
        )


def of_steps(events: Iterable[Event]) -> dict[str, float]:
    """What a step takes on average, of the events of a trace.

    Returns:
        step_ms: from one step to the next. waits: how often the host waited for the GPU. host_ms:
        step_ms without these waits.
    """
    steps = []
    waits = []
    for event in events:
        if event.name.startswith(STEP):
            steps.append(event.time_range)
        elif event.name in WAITS:
            waits.append(event.time_range)
    inside = [wait for wait in waits if any(_holds(step, wait) for step in steps)]
    if not steps:
        return {}
    whole = sum(step.end - step.start for step in steps)
    waited = sum(wait.end - wait.start for wait in inside)
    return {
        "step_ms": whole / len(steps) / 1000,
        "host_ms": (whole - waited) / len(steps) / 1000,
        "waits": len(inside) / len(steps),
    }


def _holds(step: Span, wait: Span) -> bool:
    return step.start <= wait.start < step.end
