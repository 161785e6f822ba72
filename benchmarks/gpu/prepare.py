"""`prepare`: what a machine with a card needs, made on one without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from benchmarks.gpu.cases import CASES
from benchmarks.gpu.correctness import computed
from benchmarks.gpu.made import write_encoder, write_set
from benchmarks.gpu.place import Place
from utils.errors import InputError


def prepare(folder: Path, tiny: bool) -> Place:
    """Write encoders, data sets and what a CPU computes of every case.

    Args:
        tiny: in the sizes of a dry run.
    Raises:
        InputError: the folder holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: expected a new or an empty folder")
    place = Place(folder.resolve(), tiny)
    sizes = place.sizes
    for name in ("small", "distil", "bert"):
        write_encoder(place.encoder(name), getattr(sizes, name))
    write_set(place.data / "check", sizes.check, sizes.small.words)
    write_set(place.data / "titles", sizes.titles, sizes.distil.words)
    write_set(place.data / "texts", sizes.texts, sizes.distil.words)
    write_expected(place)
    place.close()
    return place


def write_expected(place: Place) -> None:
    """Compute every case and write what it comes to."""
    expected = {}
    for case in CASES:
        expected[case] = computed(place, case, f"expected {case}")
        losses = expected[case]["losses"]
        print(f"{case}: {len(losses)} steps, P@5 {expected[case]['P@5']:.2f}", flush=True)
    place.expected_file.write_text(json.dumps(expected) + "\n")
    shutil.rmtree(place.folder / "runs")


def megabytes(folder: Path) -> float:
    """What the files of a folder take."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
