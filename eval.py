"""Evaluate a run's best model.

    python eval.py Results/XMCKit/LF-DebianTitles-small/dexml         # test split
    python eval.py val RUN                # or trn; RUN = folder or its config.yaml
    python eval.py RUN --points new.jsonl # labelled rows of a file: JSON lines, CSV or TSV
    python eval.py RUN --points new.csv --text-column body --labels-column tags --separator ";"
    python eval.py RUN --data.name Other  # test split of another data set
    python eval.py RUN --data.root ../Datasets        # what does not change the model is free
    python eval.py RUN --eval.index hnsw              # approximate search; logs its recall
    python eval.py RUN --eval.threshold_for macro_f1  # F1 at the threshold for another goal

Writes <split>_metrics.json (percent), <split>_score_mat.npz (scipy CSR, points x labels),
labels.csv (each label's points, precision, recall, F1) and report.html (of the test split;
<split>_labels.csv and <split>_report.html of the others) into the run folder. F1 is that of the
answers at the run's threshold: predict.py --threshold auto gives them.

Of rows of a file or of another data set: files by its name (--name gives another), and
<name>_ids.txt where the rows have ids. Their labels are matched with the run's by name; labels that
the run does not know count as missed, but in F1, and are named. Propensities and label frequencies
are always those of the run's training data; filter pairs are those of the rows' data set, rows of a
file have none.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.commands import add_debug_option, command
from utils.config.command_line import parse_words
from utils.config.plugins import add_plugin_option
from utils.errors import InputError

if TYPE_CHECKING:
    from engine.new_points import PointsFile


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    from utils.prepare.point_options import add_point_options

    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("split", nargs="?", default="tst", help="trn, val or tst (default tst)")
    parser.add_argument("run", help="run folder or its config.yaml")
    parser.add_argument(
        "--points", metavar="FILE", help="labelled rows to be evaluated; - is standard input"
    )
    add_point_options(parser, "points", labels=True)
    parser.add_argument("--name", help="of the files about --points (default: that of FILE)")
    add_plugin_option(parser)
    add_debug_option(parser)
    return parse_words(parser, arguments)


def evaluate(
    run: str | Path,
    split: str = "tst",
    overrides: Sequence[str] | None = None,
    points: PointsFile | None = None,
) -> dict[str, float]:
    """Evaluate a run; see `engine.evaluator.evaluate_run`."""
    from engine.evaluator import evaluate_run  # here: --help is instant

    return evaluate_run(run, split, overrides, points)


def points_of(options: argparse.Namespace) -> PointsFile | None:
    """The rows that the command line names, if it names some."""
    if options.points is None:
        if options.name is not None:
            raise InputError("--name: names files about --points, but there are none")
        return None
    from engine.new_points import PointsFile, check_new_name
    from utils.prepare.point_files import check_points_file, given_reader

    check_points_file(options.points)
    name = None if options.name is None else check_new_name(options.name)
    reader = given_reader(options, options.points, labelled=True)
    return PointsFile(options.points, reader, name)


def main(arguments: Sequence[str] | None = None) -> None:
    options, words = parse_arguments(arguments)
    with command(options.debug, "interrupted; files that were begun are not kept"):
        from utils import distributed  # here: --help is instant, and Ctrl-C a line
        from utils.run.logs import start_logging

        start_logging()
        evaluate(options.run, options.split, words, points_of(options))
        distributed.stop()


if __name__ == "__main__":
    main()
