"""Says what a data set is, which presets suit it and what each will take on this machine.

    python -m utils.advise Datasets/Mine             # tables
    python -m utils.advise /elsewhere/Mine --json    # the same as JSON

Nothing is trained: a second of small work is timed, and measured costs are scaled by it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from utils.commands import add_debug_option, command
from utils.console import show_anything
from utils.errors import InputError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    show_anything()
    parser = argparse.ArgumentParser(
        prog="python -m utils.advise",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="a data set: its folder, wherever it is")
    parser.add_argument("--json", action="store_true", help="print one JSON object, no tables")
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads of a run, 1 or more (default: the cores it may use)",
    )
    add_debug_option(parser)
    options = parser.parse_args(arguments)
    with command(options.debug):
        _advise(options.folder.resolve(), options.json, options.threads)


def _advise(
    folder: Path,
    as_json: bool,
    threads: int | None,
) -> None:
    from engine.advising import offers, share_unknown, shares_cut
    from utils.advise.dataset_facts import dataset_facts
    from utils.advise.machine import calibrate
    from utils.advise.tables import facts_table, methods_lines, offers_table, suiting
    from utils.config.sections import DataConfig
    from utils.data.dataset import check_dataset_folder
    from utils.distributed import cpu_threads
    from utils.plan.verdict import machine

    if threads is not None and threads < 1:
        raise InputError(f"--threads: expected at least 1, got {threads}")
    check_dataset_folder(folder)
    facts = dataset_facts(folder)
    cut = shares_cut(folder)
    unknown = share_unknown(folder)
    speed = calibrate(cpu_threads(threads))
    found = list(offers(folder, facts, speed))
    has = machine()
    if as_json:
        told = {
            "data": facts.as_json() | {"share_cut_at": cut, "share_of_unknown_tokens": unknown},
            "machine": dataclasses.asdict(speed) | has,
            "presets": [dataclasses.asdict(offer) for offer in found],
        }
        print(json.dumps(told, indent=2))
        return
    print(facts_table(facts, cut, unknown))
    print()
    print(offers_table([dataclasses.asdict(offer) for offer in found], speed, has["memory"]))
    print()
    print(methods_lines([offer.stages for offer in found]))
    print()
    usual = folder.parent == Path(DataConfig.root).resolve()
    print(suiting(facts, "" if usual else str(folder.parent)))


if __name__ == "__main__":
    main()
