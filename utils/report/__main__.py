"""Tables over finished runs.

    python -m utils.report seeds RUN...                     # mean and deviation, a row a config
    python -m utils.report seeds RUN... --split val         # of the validation split
    python -m utils.report seeds Results/*/*/dexa-seed*     # runs of several configs: a row each
    python -m utils.report compare RUN RUN...               # differences to the first, intervals
    python -m utils.report compare RUN RUN... --out c.html  # and a page where they differ
    python -m utils.report seeds RUN... --format latex      # or csv: for a paper, for a program

A RUN is a run folder. Where a run lacks a metric the table has a dash, and a note says which run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.commands import add_debug_option, command
from utils.console import show_anything


def main(words: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    seeds = commands.add_parser(
        "seeds", help="mean and standard deviation over the seeds of each config"
    )
    comparison = commands.add_parser(
        "compare", help="runs of one data set beside the first, with bootstrap intervals"
    )
    for subcommand in (seeds, comparison):
        subcommand.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
        subcommand.add_argument("--split", default="tst", choices=("trn", "val", "tst"))
        subcommand.add_argument(
            "--metrics", nargs="+", metavar="METRIC", help="columns, such as P@1"
        )
        subcommand.add_argument(
            "--format",
            default="markdown",
            choices=("markdown", "latex", "csv"),
            help="of the table; latex needs the package booktabs",
        )
    comparison.add_argument(
        "--out", type=Path, metavar="FILE", help="also write a page, such as compare.html"
    )
    comparison.add_argument(
        "--root", help="folder of the data sets, if it has moved since training"
    )
    comparison.add_argument(
        "--resamples", type=int, default=10_000, help="of the bootstrap (default %(default)s)"
    )
    add_debug_option(parser)
    show_anything()
    options = parser.parse_args(words)
    with command(options.debug):
        # here: --help is instant, and Ctrl-C a line
        from utils.report.formats import written
        from utils.report.tables import compare_runs, rows_alike, seeds_table

        alike = ""
        if options.command == "seeds":
            told = seeds_table(options.runs, options.split, options.metrics)
            alike = rows_alike(options.runs, options.split)
        else:
            told = compare_runs(
                options.runs,
                options.split,
                options.metrics,
                out=options.out,
                root=options.root,
                resamples=options.resamples,
            )
        print(written(told.table, options.format))
        for note in filter(None, [*told.notes, alike]):
            print(note, file=sys.stderr)


if __name__ == "__main__":
    main()
