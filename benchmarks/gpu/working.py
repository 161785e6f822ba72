"""Cases computed in this process, or in another that may die or take too long.

A fault of a kernel leaves a process without its card; the next one goes on with the next case.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu.card import is_broken, release
from benchmarks.gpu.place import Place
from benchmarks.gpu.report import Row, shown
from benchmarks.gpu.sections import SECTIONS

ROOT = Path(__file__).resolve().parents[2]
BROKEN = 3  # exit code of a process whose card is of no more use

# (place, section, cases, seconds) -> rows of the first of these cases, and why they are not all
Worker = Callable[[Place, str, Sequence[str], float], tuple[list[Row], str]]


# -------------------------------- one after the other


def computed(place: Place, name: str, cases: Sequence[str], worker: Worker) -> list[Row]:
    """A row for each of some cases of a section, whatever becomes of it."""
    allowed = SECTIONS[name].seconds
    started = time.monotonic()
    rows: list[Row] = []
    waiting = list(cases)
    while waiting:
        left = allowed - (time.monotonic() - started)
        if left <= 0:
            why = f"not reached within the {allowed:.0f} s of the section"
            return [*rows, *({"case": case, "failed": why} for case in waiting)]
        found, ended = worker(place, name, waiting, left)
        if not found:  # nothing came of the first of them
            found = [{"case": waiting[0], "failed": ended}]
        rows += found
        waiting = waiting[len(found) :]
    return rows


def attempted(place: Place, name: str, case: str) -> tuple[Row, bool]:
    """Compute a case: its row, and whether the process may go on."""
    try:
        row = SECTIONS[name].measure(place, case)
    except Exception as error:
        traceback.print_exc()
        return {"case": case, "failed": reason(error)}, not is_broken(error)
    finally:
        release()
    return {"case": case, **row}, True


def reason(error: Exception) -> str:
    """An error and where it came from, in one line."""
    frames = traceback.extract_tb(error.__traceback__)[-2:]
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames)]
    said = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {said} ({' < '.join(places)})"


# -------------------------------- here


def here(place: Place, name: str, cases: Sequence[str], seconds: float) -> tuple[list[Row], str]:
    """Compute cases in this process; none is begun after `seconds`."""
    started = time.monotonic()
    rows: list[Row] = []
    for case in cases:
        if rows and time.monotonic() - started > seconds:
            break
        row, _ = attempted(place, name, case)
        print(shown(row), flush=True)
        rows.append(row)
    return rows, ""


# -------------------------------- in a process of its own


def elsewhere(
    place: Place, name: str, cases: Sequence[str], seconds: float
) -> tuple[list[Row], str]:
    """Compute cases in another process, which is ended after `seconds`."""
    order = {"section": name, "cases": list(cases), "words": place.words}
    command = [sys.executable, "-m", "benchmarks.gpu", "work", str(place.folder)]
    return asked([*command, json.dumps(order)], place.folder / f"{name}.log", seconds)


def asked(command: Sequence[str], log: Path, seconds: float) -> tuple[list[Row], str]:
    """Rows that a process prints as JSON, a line each, and how it ended.

    Args:
        log: where what it says beside them goes.
    """
    with open(log, "a", encoding="utf-8") as file:
        process = subprocess.Popen(
            list(command), cwd=ROOT, stdout=subprocess.PIPE, stderr=file, text=True
        )
        try:
            printed, _ = process.communicate(timeout=seconds)
            ended = f"the process ended with exit code {process.returncode}; {log} tells more"
        except subprocess.TimeoutExpired:
            process.kill()
            printed, _ = process.communicate()
            ended = f"did not end within the {seconds:.0f} s that were left of the section"
    rows = [json.loads(text) for text in printed.splitlines() if text.startswith("{")]
    for row in rows:
        print(shown(row), flush=True)
    return rows, ended


def work(place: Place, name: str, cases: Sequence[str]) -> int:
    """What the other process does: print rows; the exit code."""
    for case in cases:
        row, may_go_on = attempted(place, name, case)
        print(json.dumps(row), flush=True)
        if not may_go_on:
            return BROKEN
    return 0
