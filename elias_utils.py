"""ELIAS's offline steps; each is a function of engine/elias_steps.py.

    # stage 1's graph from TF-IDF features alone
    python elias_utils.py gen_cluster_A CONFIG --no_model true
    # with the embeddings of that run's model too
    python elias_utils.py gen_cluster_A RUN
    # of run.start_from, or of the config's run
    python elias_utils.py gen_cluster_A CONFIG
    # stage 2's graph from a finished stage 1
    python elias_utils.py gen_approx_A CONFIG|RUN
    # ELIAS++: train the ranker on top of stage 2
    python elias_utils.py sparse_ranker RUN
    # smaller weights on disk, for eval.precision
    python elias_utils.py quantize RUN --precision int8
    # draw what the graph has learned
    python elias_utils.py report RUN
    accelerate launch --config_file configs/accelerate.yaml --num_processes 4 elias_utils.py
        gen_approx_A RUN

`train.py CONFIG` takes the graph that gen_cluster_A wrote beside the folder of its run, a stage 2
the one that gen_approx_A wrote into the run that it starts from; where there is none it makes its
own. `--out FILE` writes elsewhere, for `--method.graph FILE` of train.py. The last line says where
a graph went.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.commands import add_debug_option, command
from utils.config.command_line import parse_words
from utils.config.plugins import add_plugin_option

STEPS = ("gen_cluster_A", "gen_approx_A", "sparse_ranker", "quantize", "report")


def parse_arguments(
    arguments: Sequence[str] | None = None,
) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("step", choices=STEPS)
    parser.add_argument(
        "run", metavar="CONFIG|RUN", help="config, or run folder or its config.yaml"
    )
    parser.add_argument(
        "--no_model",
        nargs="?",
        const="true",
        default="false",
        choices=("true", "false"),
        help="gen_cluster_A: no embeddings, whatever run.start_from says",
    )
    parser.add_argument(
        "--precision", default="int8", choices=("bfloat16", "int8"), help="quantize: default int8"
    )
    parser.add_argument("--out", help="file of the graph")
    parser.add_argument(
        "--overwrite", action="store_true", help="sparse_ranker: replace the run that is there"
    )
    add_plugin_option(parser)
    add_debug_option(parser)
    return parse_words(parser, arguments)


USED = {
    "gen_cluster_A": ("no_model", "out"),
    "gen_approx_A": ("out",),
    "sparse_ranker": ("overwrite",),
    "quantize": ("precision",),
    "report": (),
}  # flags of each step
# what these let override of a run
FREE = {"gen_approx_A": ("method.kappa",), "quantize": (), "report": ()}


def check_words(options: argparse.Namespace, words: Sequence[str]) -> None:
    """ConfigError for a flag or an override that the step would not use."""
    from utils.config.config import ConfigError, parse_overrides  # here: --help is instant

    defaults = {"no_model": "false", "out": None, "overwrite": False, "precision": "int8"}
    for flag, default in defaults.items():
        if flag not in USED[options.step] and getattr(options, flag) != default:
            raise ConfigError(
                f"{options.step} has no --{flag}; it takes "
                f"{', '.join('--' + name for name in USED[options.step]) or 'none'}"
            )
    if any(word.startswith("--stages.") for word in words):
        raise ConfigError(
            f"{options.step}: --stages is for train.py; a step works on the config of one stage"
        )
    given = [
        f"{section}.{key}" for section, values in parse_overrides(words).items() for key in values
    ]
    if options.step not in FREE or not _is_run(options.run):
        return
    free = FREE[options.step]
    if fixed := [key for key in given if key not in free]:
        raise ConfigError(
            f"{options.step}: {fixed[0]} is fixed by the run; what can be overridden: "
            f"{', '.join(free) or 'nothing'}"
        )


def run_step(options: argparse.Namespace, words: Sequence[str]) -> tuple[str, Path]:
    """Do what the words ask for: (what it made, where it lies)."""
    from engine import elias_steps
    from utils.config.legacy_yaml import load_any_config

    check_words(options, words)
    if options.step == "gen_cluster_A":
        model = options.no_model == "false"
        if _is_run(options.run):
            return "graph", elias_steps.gen_cluster_A(options.run, model, options.out, words)
        config = load_any_config(options.run, words)
        return "graph", elias_steps.gen_cluster_A(config, model, options.out)
    if options.step == "gen_approx_A":
        run = _run_folder(options.run, words)
        return "graph", elias_steps.gen_approx_A(run, _kappa(words), options.out)
    run = _run_folder(options.run, ())
    if options.step == "sparse_ranker":
        return "run", elias_steps.sparse_ranker(run, words, options.overwrite)
    if options.step == "quantize":
        return "model", elias_steps.quantize(run, options.precision)
    return "plot", elias_steps.report(run)


def main(arguments: Sequence[str] | None = None) -> None:
    options, words = parse_arguments(arguments)
    with command(options.debug, "interrupted; nothing was written"):
        from utils import distributed  # here: --help is instant, and Ctrl-C a line
        from utils.run.logs import start_logging

        start_logging()
        what, where = run_step(options, words)
    if distributed.is_main():
        print(f"{what}: {where}")
    distributed.stop()


def _is_run(path: str) -> bool:
    """Whether a word names a run folder, or the config.yaml inside one; other files are configs."""
    folder = Path(path).parent
    inside = any(
        (folder / name).exists() for name in ("environment.json", "model", "last", "stages")
    )
    return Path(path).is_dir() or (Path(path).name == "config.yaml" and inside)


def _kappa(words: Sequence[str]) -> int | None:
    """Of an override."""
    from models.elias.options import EliasConfig
    from utils.config.config import parse_overrides, read_option

    kappa = parse_overrides(words).get("method", {}).get("kappa")
    if kappa is None:
        return None
    return read_option(EliasConfig, "method", "kappa", kappa, "command line")


def _run_folder(path: str, words: Sequence[str]) -> Path:
    """A run folder as it is; the folder that a config's run went to.

    Raises:
        ConfigError: that has not been trained.
    """
    from utils.config.config import ConfigError
    from utils.config.legacy_yaml import load_any_config

    if _is_run(path):
        return Path(path)
    config = load_any_config(path, words)
    if not (config.run_folder / "config.yaml").is_file():
        start = config.run.start_from
        before = ""
        if start and Path(start).is_dir():
            before = f"; or name the run that it starts from, {start}"
        raise ConfigError(
            f"{path}: its run {config.run_folder} does not exist; train it first: python train.py "
            f"{path}{before}"
        )
    return config.run_folder


if __name__ == "__main__":
    main()
