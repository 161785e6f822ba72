"""Is it right and fast on a GPU?

    python -m benchmarks.gpu prepare FOLDER     # on any machine, minutes, below 60 MB
    python -m benchmarks.gpu run FOLDER         # on one with a card, at most 6 minutes

    python -m benchmarks.gpu run FOLDER --only losses resume
    python -m benchmarks.gpu run FOLDER --only equality --case elias        # whose name has this
    python -m benchmarks.gpu run FOLDER --only dexml --method.gc_batch_size 512    # any key
    python -m benchmarks.gpu prepare TINY --tiny                    # a dry run, in seconds:
    python -m benchmarks.gpu run TINY --device cpu

FOLDER can be copied between the two commands: encoders and data sets in it are random, so that the
machine with the card needs no network and no pretrained encoder. `run` prints a table, writes
FOLDER/gpu.json and FOLDER/gpu.md, and ends with exit code 1 if a check fails. docs/gpu.md tells
what is checked.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.cards import USE_CPU, gpu_computes
from utils.commands import add_debug_option, command
from utils.config.command_line import parse_words
from utils.errors import InputError

NAMES = ("equality", "resume", "precision", "losses", "dexml", "ngame", "elias")


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return options, and overrides of configs."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("prepare", help="make encoders, data sets and what a CPU computes")
    making.add_argument("--tiny", action="store_true", help="in the sizes of a dry run")
    running = commands.add_parser("run", help="check and measure")
    running.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="these sections")
    running.add_argument("--case", default="", help="only cases whose name has this")
    running.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run")
    working = commands.add_parser("work", help=argparse.SUPPRESS)  # what `run` starts
    for one in (making, running, working):
        one.add_argument("folder", type=Path)
        add_debug_option(one)
    working.add_argument("order")
    return parse_words(parser, arguments)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Check and measure; the number of cases that are wrong.

    Raises:
        InputError: there is no card, or the folder is not for this device.
    """
    from benchmarks.gpu import report
    from benchmarks.gpu.card import described
    from benchmarks.gpu.place import Place
    from benchmarks.gpu.sections import SECTIONS
    from benchmarks.gpu.working import computed, elsewhere, here

    dry = options.device == "cpu"
    if dry:
        os.environ[USE_CPU] = "true"
    elif not gpu_computes():
        raise InputError("no CUDA card computes here; --device cpu is a dry run, at tiny sizes")
    place = Place.open(options.folder.resolve(), overrides)
    if dry and not place.tiny:
        raise InputError(
            f"{options.folder} has the sizes of a card; `prepare OTHER --tiny` makes those of a "
            "dry run"
        )
    machine = described()
    rows = {}
    for name in options.only:
        print(f"--- {name}", flush=True)
        cases = [case for case in SECTIONS[name].cases if options.case in case]
        rows[name] = computed(place, name, cases, here if dry else elsewhere)
        report.write(place.folder, machine, rows)
    print(report.markdown(machine, rows))
    return sum(report.is_wrong(row) for own in rows.values() for row in own)


def work(folder: Path, order: str) -> int:
    """Compute the cases that `run` asks for."""
    from benchmarks.gpu.place import Place
    from benchmarks.gpu.working import work

    asked = json.loads(order)
    place = Place.open(folder, asked["words"])
    return work(place, asked["section"], asked["cases"])


def main(arguments: Sequence[str] | None = None) -> None:
    options, overrides = parse(arguments)
    if overrides and options.command != "run":
        sys.exit("error: only `run` takes keys of configs")
    with command(options.debug):
        if options.command == "prepare":
            from benchmarks.gpu.prepare import megabytes, prepare

            os.environ[USE_CPU] = "true"
            prepare(options.folder, options.tiny)
            print(f"{options.folder}: {megabytes(options.folder):.0f} MB")
        elif options.command == "work":
            sys.exit(work(options.folder, options.order))
        else:
            wrong = run(options, overrides)
            if wrong:
                sys.exit(f"{wrong} case{'s are' if wrong > 1 else ' is'} wrong or failed")


if __name__ == "__main__":
    main()
