"""Tables over finished runs.

    python -m utils.report seeds RUN...                     # mean and deviation, a row a config
    python -m utils.report seeds RUN... --split val         # of the validation split
    python -m utils.report seeds Results/*/*/dexa-seed*     # runs of several configs: a row each
    python -m utils.report compare RUN RUN...               # differences to the first, intervals
    python -m utils.report compare RUN RUN... --out c.html  # and a page where they differ

A RUN is a run folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.commands import add_debug_option, command
from utils.console import show_anything
from utils.report.columns import COLUMNS


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
            "--metrics", nargs="+", default=COLUMNS, metavar="METRIC", help="columns, such as P@1"
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
        from utils.report.tables import compare_runs, rows_alike, seeds_table

        if options.command == "seeds":
            print(seeds_table(options.runs, options.split, options.metrics))
            if alike := rows_alike(options.runs, options.split):
                print(alike, file=sys.stderr)
        else:
            told = compare_runs(
                options.runs,
                options.split,
                options.metrics,
                out=options.out,
                root=options.root,
                resamples=options.resamples,
            )
            print(told)


if __name__ == "__main__":
    main()
