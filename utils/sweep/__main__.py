"""Train a config with other values of its keys, and keep the best of them.

    python -m utils.sweep CONFIG --try optim.lr=1e-3,2e-3 --try method.tau=log:0.01:0.1 --trials 20

    --try optim.lr=1e-3,2e-3            these values
    --try method.tau=log:0.01:0.1       numbers between, small ones as often as large ones
    --try encoder.dropout=lin:0:0.3     numbers between
    --try train.epochs=int:5:20         whole numbers, both ends among them
    --try stages.NAME.optim.lr=...      the key of one stage
    --train.epochs 3                    the same for all trials, as train.py takes it

Trials are compared by validation points alone, by the metric that selects a model unless --metric
names another. optuna draws them (pip install 'optuna>=4'): all combinations where --trials allows
that, else by what earlier ones found. One that is below the median of the others after an epoch is
ended there (--no-pruning: never). Each is a run of its own in a process of its own: DIR/trial-001/,
made of DIR/trial-001.yaml. One that fails is told, and the sweep goes on.

DIR (default: the run's folder with -sweep behind it) then holds trials.md and trials.csv, the best
first, and best.yaml: `python train.py DIR/best.yaml`. The same command again goes on with trials
that were interrupted, then with those that are owed; --trials may be more than before. The same
--seed gives the same trials, with --jobs 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from utils.commands import add_debug_option, command
from utils.config.command_line import parse_words
from utils.config.plugins import add_plugin_option

if TYPE_CHECKING:
    from engine.sweep.loop import Outcome

INTERRUPTED = "interrupted; what has ended is kept, and the same command goes on"


def parse_arguments(words: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Read options, and overrides of the config."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", help="YAML config, as train.py takes it")
    parser.add_argument(
        "--try",
        dest="tries",
        action="append",
        default=[],
        metavar="KEY=VALUES",
        help="a key and the values that trials may have",
    )
    parser.add_argument(
        "--trials",
        type=int,
        metavar="N",
        help="how many (default: all combinations, at most 20)",
    )
    parser.add_argument("--dir", metavar="DIR", help="folder of the sweep")
    parser.add_argument(
        "--metric", default="", help="by which trials are compared, such as P@5 or PSP@5"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default 0)")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="trials beside each other, on a GPU each where there are several (default 1)",
    )
    parser.add_argument("--no-pruning", action="store_true", help="train every trial to its end")
    add_plugin_option(parser)
    add_debug_option(parser)
    return parse_words(parser, words)


def main(words: Sequence[str] | None = None) -> None:
    """Run the command."""
    options, overrides = parse_arguments(words)
    with command(options.debug, INTERRUPTED, code=130):
        from engine.sweep.loop import Asked, Stopped, Sweep  # here: --help is instant
        from utils.run.logs import start_logging

        start_logging()
        asked = Asked(
            config=options.config,
            tries=options.tries,
            words=overrides,
            trials=options.trials,
            folder=options.dir,
            metric=options.metric,
            seed=options.seed,
            jobs=options.jobs,
            prune=not options.no_pruning,
        )
        try:
            outcome = Sweep(asked).run()
        except Stopped:
            print(INTERRUPTED, file=sys.stderr)
            sys.exit(143)
        show(outcome)


def show(outcome: Outcome) -> None:
    """Print the table and what is best; leave with an error where no trial finished."""
    from utils.report.formats import written

    print(written(outcome.shown, "markdown"))
    if outcome.config is None:
        sys.exit("error: no trial has finished; the table says why")
    print(f"\nbest: trial {outcome.number}, run {outcome.run}")
    print(f"config: {outcome.config}")


if __name__ == "__main__":
    main()
