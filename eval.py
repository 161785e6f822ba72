"""Evaluate a run's best model.

    python eval.py Results/XMCKit/LF-DebianTitles-small/dexml         # test split
    python eval.py val RUN                # or trn; RUN = folder or its config.yaml
    python eval.py RUN --data.root ../Datasets        # what does not change the model is free
    python eval.py RUN --eval.index hnsw              # approximate search; logs its recall

Writes <split>_metrics.json (percent), <split>_score_mat.npz (scipy CSR, points x labels) and
report.html (of the test split; <split>_report.html of the others) into the run folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.commands import add_debug_option, command
from utils.config.command_line import parse_words
from utils.config.plugins import add_plugin_option


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("split", nargs="?", default="tst", help="trn, val or tst (default tst)")
    parser.add_argument("run", help="run folder or its config.yaml")
    add_plugin_option(parser)
    add_debug_option(parser)
    return parse_words(parser, arguments)


def evaluate(
    run: str | Path, split: str = "tst", overrides: Sequence[str] | None = None
) -> dict[str, float]:
    """Evaluate a run; see `engine.evaluator.evaluate_run`."""
    from engine.evaluator import evaluate_run  # here: --help is instant

    return evaluate_run(run, split, overrides)


def main(arguments: Sequence[str] | None = None) -> None:
    options, words = parse_arguments(arguments)
    with command(options.debug, "interrupted; files that were begun are not kept"):
        from utils import distributed  # here: --help is instant, and Ctrl-C a line
        from utils.run.logs import start_logging

        start_logging()
        evaluate(options.run, options.split, words)
        distributed.stop()


if __name__ == "__main__":
    main()
