"""Train one config, start to finish.

    python train.py configs/LF-DebianTitles-small/dexml.yaml
    python train.py CONFIG --train.epochs 3 --run.seed 1       # any key of any section
    python train.py CONFIG --resume | --overwrite     # go on with, or replace, the run
    python train.py CONFIG --plan [--processes 4]     # will it fit? Loads nothing
    python train.py CONFIG --plan --points 300000 --labels 131000 --tokens 12 --gpu 80   # elsewhere
    accelerate launch --config_file configs/accelerate.yaml --num_processes 4 train.py CONFIG

Prints `run: <folder>` as its last line; then `python eval.py <folder>`. All keys:
`python -m utils.config`. The loop is in engine/trainer.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.commands import add_debug_option, command
from utils.config.command_line import parse_words
from utils.config.plugins import add_plugin_option

if TYPE_CHECKING:
    from engine.callbacks import OnEvaluation
    from utils.config.config import Config


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "config",
        help="YAML config, or the name of a preset (tree, encoder, classifiers, index, best); flat "
        "YAML of DEXML and ELIAS and JSON of NGAME and DEXA too",
    )
    folder = parser.add_mutually_exclusive_group()
    folder.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint, if there is one"
    )
    folder.add_argument(
        "--overwrite", action="store_true", help="replace the run that the folder holds"
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="print the memory and messages that a run needs, and stop",
    )
    parser.add_argument(
        "--processes", type=int, help="with --plan: processes to plan for (default 1)"
    )
    _add_assumptions(parser)
    add_plugin_option(parser)
    add_debug_option(parser)
    options, overrides = parse_words(parser, arguments)
    if options.processes is not None and not options.plan:
        parser.error(
            "--processes goes with --plan; to train on several processes use accelerate launch"
        )
    for name in ("points", "labels", "tokens", "gpu"):
        if vars(options)[name] is not None and not options.plan:
            parser.error(f"--{name} goes with --plan")
    return options, overrides


def _add_assumptions(parser: argparse.ArgumentParser) -> None:
    """What --plan is told of a data set and a card that are not here."""
    group = parser.add_argument_group("with --plan, for a data set or a GPU that is not here")
    group.add_argument("--points", type=int, metavar="N", help="training points")
    group.add_argument("--labels", type=int, metavar="L", help="labels")
    group.add_argument(
        "--tokens",
        type=float,
        metavar="T",
        help="tokens of a text on average; the longest have data.max_len",
    )
    group.add_argument("--gpu", type=float, metavar="GIB", help="memory of each GPU, in GiB")


def fit(
    config: Config,
    resume: bool = False,
    overwrite: bool = False,
    on_evaluation: OnEvaluation | None = None,
) -> Path:
    """Train a config; see `engine.trainer.fit`."""
    from engine.trainer import fit  # here: --help is instant

    return fit(config, resume, overwrite, on_evaluation)


def main(arguments: Sequence[str] | None = None) -> None:
    options, words = parse_arguments(arguments)
    interrupted = "interrupted at once; --resume goes on from the last checkpoint, if there is one"
    with command(options.debug, interrupted, code=130, also=(FloatingPointError,)):
        from engine.choosing import assumed_facts, chosen
        from engine.memory_plan import report  # here: --help is instant, and Ctrl-C a line
        from engine.planning import plan_recipe
        from engine.trainer import fit
        from utils import distributed
        from utils.plan.sizes import Assumed
        from utils.run.logs import start_logging
        from utils.run.reopened import load_training_config
        from utils.run.stages import member_stages
        from utils.training.interrupt import Interrupted

        start_logging()
        config = load_training_config(options.config, words, member_stages)
        if options.plan:
            processes = 1 if options.processes is None else options.processes
            assumed = Assumed(options.points, options.labels, options.tokens, options.gpu)
            config = chosen(config, assumed_facts(assumed))
            print(report(config, processes, assumed))
            if assumed.points is None:  # else the data set is not here
                plan_recipe(config, processes=processes)
            return
        try:
            folder = fit(config, options.resume, options.overwrite)
        except Interrupted as stop:
            if distributed.is_main():
                print(stop, file=sys.stderr)
            sys.exit(128 + stop.signal_number)
    if distributed.is_main():
        print(f"run: {folder}")
    distributed.stop()


if __name__ == "__main__":
    main()
