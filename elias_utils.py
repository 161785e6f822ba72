"""ELIAS's offline steps, each a function and a command.

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
    python elias_utils.py report RUN                               # draw what the graph has learned
    accelerate launch --config_file configs/accelerate.yaml --num_processes 4 elias_utils.py
        gen_approx_A RUN

`train.py CONFIG` takes the graph that gen_cluster_A wrote beside the folder of its run, a stage 2
the one that gen_approx_A wrote into the run that it starts from; where there is none it makes its
own. `--out FILE` writes elsewhere, for `--method.graph FILE` of train.py. The last line says where
a graph went.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from utils.commands import add_debug_option, command
from utils.config.command_line import parse_words
from utils.config.plugins import add_plugin_option

STEPS = ("gen_cluster_A", "gen_approx_A", "sparse_ranker", "quantize", "report")


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
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
    return parse_words(parser)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports below, so that --help is instant

import dataclasses  # noqa: E402
import logging  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402

import torch  # noqa: E402

from models.elias import start as elias_start  # noqa: E402
from models.elias.graph import Graph, check_graph  # noqa: E402
from models.elias.learner import Elias  # noqa: E402
from models.elias.made_graphs import Origin, approx_origin, cluster_origin  # noqa: E402
from models.elias.options import EliasConfig, Limits  # noqa: E402
from models.elias.report import draw  # noqa: E402
from models.loading import load_method  # noqa: E402
from models.planning import with_resolved_encoder  # noqa: E402
from train import fit  # noqa: E402
from utils import distributed  # noqa: E402
from utils.config.config import (
    Config,
    ConfigError,
    finish_config,
    parse_overrides,
    read_option,
    to_mapping,
)  # noqa: E402
from utils.config.graph_places import approx_file, cluster_file  # noqa: E402
from utils.config.legacy_yaml import load_any_config  # noqa: E402
from utils.config.methods import method_class  # noqa: E402
from utils.data.dataset import load_dataset  # noqa: E402
from utils.errors import InputError  # noqa: E402
from utils.pretrained.location import load_tokenizer  # noqa: E402
from utils.row_store import RowStore  # noqa: E402
from utils.run.finding import find_run  # noqa: E402
from utils.run.logs import start_logging  # noqa: E402

log = logging.getLogger("elias_utils")


def gen_cluster_A(
    source: Config | str | Path,
    model: bool = True,
    out: str | Path | None = None,  # noqa: N802
    overrides: Sequence[str] = (),
) -> Path:
    """Balanced clusters of the labels' centroids (A of stage 1), written to a file. Every process
    calls it.

    Args:
        source: a config, or a run folder or its config.yaml.
        model: cluster by embeddings too, beside TF-IDF features: by the model of the run, for a
            config by that of `run.start_from`, or of the run that it has trained; one that has
                neither has TF-IDF features alone.
        out: default <folder of the run>.cluster_A.npz, where a run of the config looks for it.
        overrides: of a run's config, as eval.py takes them.
    """
    if isinstance(source, Config):
        config = source
        start = _model_of(config) if model else None
    else:
        folder, config = find_run(source, overrides)
        if not issubclass(method_class(config.method.name), Elias):
            raise ConfigError(_other_run("gen_cluster_A", folder, config))
        here = dataclasses.replace(config.run, dir=str(folder))  # the run may have been moved
        config = dataclasses.replace(config, run=here)
        start = folder if model else None
    if not issubclass(method_class(config.method.name), Elias):
        raise ConfigError(
            f"gen_cluster_A: expected a config of elias-1 or elias-2, got {config.method.name}"
        )
    if config.stages and out is None:
        raise ConfigError(
            "gen_cluster_A: this config has stages, each of which makes its own graph; name a "
            "config of one stage, or say where the graph goes: --out FILE"
        )
    accelerator, data = _start(config)
    points = None
    if start is not None:
        log.info("clustering by TF-IDF features and the embeddings of %s", start)
        before = load_method(find_run(start)[1], start)
        points = elias_start.point_embeddings(before.to(accelerator.device), data, accelerator)
    graph = elias_start.cluster(data, config.method, points)
    limits = Limits.of(config.method, graph.num_clusters, data.num_labels)
    return _write(
        check_graph(graph, None, limits.kappa, "A"),
        out or cluster_file(config.run_folder),
        lambda: cluster_origin(config, data, start),
    )


def _model_of(config: Config) -> Path | None:
    """The run whose embeddings a config's labels are clustered by; None if there is none."""
    if config.run.start_from:
        try:
            return find_run(config.run.start_from)[0]
        except InputError as error:
            raise ConfigError(
                f"gen_cluster_A: run.start_from: {error}; train that run first, or cluster by "
                "TF-IDF alone: --no_model true"
            ) from error
    trained = (config.run_folder / "model").is_dir()
    return config.run_folder if trained else None


def gen_approx_A(run: str | Path, kappa: int | None = None, out: str | Path | None = None) -> Path:  # noqa: N802
    """The labels that each cluster of a finished run attracts (A of stage 2), in a file. Every
    process calls it.

    Args:
        run: run folder or its config.yaml.
        kappa: edges of a cluster, at most; default what the run's config says.
        out: default <run>/approx_A.npz, where the runs that start from this one look for it.
    """
    folder, config = find_run(run)
    accelerator, data = _start(config)
    method = load_method(config, folder).to(accelerator.device)
    if not isinstance(method, Elias):
        raise ConfigError(_other_run("gen_approx_A", folder, config))
    limits = method.model.limits
    kappa = limits.kappa if kappa is None else kappa
    if not isinstance(kappa, int) or not 1 <= kappa <= data.num_labels:
        raise ConfigError(
            "method.kappa must be a whole number from 1 to the number of labels, "
            f"{data.num_labels}; got {kappa!r}"
        )
    before = method.learned_graph()
    graph = elias_start.approximate(method, data, before, kappa, accelerator)
    return _write(
        check_graph(graph, before.num_clusters, kappa, "A'"),
        out or approx_file(folder),
        lambda: approx_origin(data, folder, kappa, limits.beam),
    )


def sparse_ranker(run: str | Path, overrides: Sequence[str] = (), overwrite: bool = False) -> Path:
    """ELIAS++: a run of method elias-ranker that starts from this one, in <run>-ranker. Every
    process calls it."""
    folder, config = find_run(run)
    if not issubclass(method_class(config.method.name), Elias):
        raise ConfigError(_other_run("sparse_ranker", folder, config))
    mapping = to_mapping(config)
    mapping.pop("stages", None)
    mapping["method"] = {
        "name": "elias-ranker",
        "calibrate": getattr(config.method, "ranker_calibrate", True),
    }
    mapping["optim"]["group_lr"] = None  # nothing is trained by gradient
    mapping["run"] |= {
        "start_from": str(folder),
        "dir": str(folder.with_name(f"{folder.name}-ranker")),
    }
    ranker = finish_config(mapping, {}, overrides, expname=folder.name)
    return fit(ranker, overwrite=overwrite)


def quantize(run: str | Path, precision: str = "int8") -> Path:
    """Write a run's cluster and label classifiers in another precision beside the float32 ones; the
    model's folder.

    `eval.py RUN --eval.precision int8` maps them then; without them it converts them in memory,
    each time.
    """
    folder, config = find_run(run)
    model = folder / "model" / ("elias" if config.method.name == "elias-ranker" else "")
    if not (model / "clusters.npy").is_file():
        raise ConfigError(_other_run("quantize", folder, config))
    with distributed.main_first():
        if distributed.is_main():
            for name in ("clusters", "labels"):
                RowStore.convert(model, name, precision)
    return model


def report(run: str | Path) -> Path:
    """Draw what a run's graph has learned again; the plot."""
    folder, config = find_run(run)
    if not issubclass(method_class(config.method.name), Elias):
        raise ConfigError(_other_run("report", folder, config))
    return draw(folder)


def _other_run(step: str, folder: Path, config: Config) -> str:
    """The message for a run of another method; the whole recipe's run has the elias runs in its
    stages."""
    stages = [
        path.parent
        for path in sorted(folder.glob("stages/*/config.yaml"))
        if issubclass(method_class(find_run(path.parent)[1].method.name), Elias)
    ]
    there = f"; those of its stages are {' and '.join(map(str, stages))}" if stages else ""
    return f"{step}: expected an elias run, {folder} is one of {config.method.name}{there}"


def _start(config: Config) -> tuple:
    """(accelerator, data set)."""
    accelerator = distributed.start(config.train.mixed_precision)
    torch.set_num_threads(distributed.cpu_threads(config.run.threads))
    config = with_resolved_encoder(config)
    source = method_class(config.method.name).tokenizer_source(config)
    return accelerator, load_dataset(
        config, load_tokenizer(source, config.encoder.trust_remote_code)
    )


def _write(graph: Graph, path: str | Path, origin: Callable[[], Origin]) -> Path:
    path = Path(path)
    if distributed.is_main():
        path.parent.mkdir(parents=True, exist_ok=True)
        graph.save(path, origin())
    distributed.barrier()
    return path


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


def main(options: argparse.Namespace, words: list[str]) -> None:
    start_logging()
    with command(options.debug, "interrupted; nothing was written"):
        check_words(options, words)
        if options.step == "gen_cluster_A":
            is_run = _is_run(options.run)
            source = options.run if is_run else load_any_config(options.run, words)
            done = (
                "graph",
                gen_cluster_A(
                    source, options.no_model == "false", options.out, words if is_run else ()
                ),
            )
        elif options.step == "gen_approx_A":
            done = (
                "graph",
                gen_approx_A(_run_folder(options.run, words), _kappa(words), options.out),
            )
        elif options.step == "sparse_ranker":
            done = "run", sparse_ranker(_run_folder(options.run, ()), words, options.overwrite)
        elif options.step == "quantize":
            done = "model", quantize(_run_folder(options.run, ()), options.precision)
        else:
            done = "plot", report(_run_folder(options.run, ()))
    if distributed.is_main():
        print(f"{done[0]}: {done[1]}")
    distributed.stop()


def _is_run(path: str) -> bool:
    """Whether a word names a run folder, or the config.yaml inside one; other files are configs."""
    folder = Path(path).parent
    inside = any(
        (folder / name).exists() for name in ("environment.json", "model", "last", "stages")
    )
    return Path(path).is_dir() or (Path(path).name == "config.yaml" and inside)


def _kappa(words: Sequence[str]) -> int | None:
    kappa = parse_overrides(words).get("method", {}).get("kappa")
    return (
        None
        if kappa is None
        else read_option(EliasConfig, "method", "kappa", kappa, "command line")
    )


def _run_folder(path: str, words: Sequence[str]) -> Path:
    """A run folder as it is; the folder that a config's run went to. ConfigError if that has not
    been trained."""
    if _is_run(path):
        return Path(path)
    config = load_any_config(path, words)
    if not (config.run_folder / "config.yaml").is_file():
        start = config.run.start_from
        before = (
            f"; or name the run that it starts from, {start}"
            if start and Path(start).is_dir()
            else ""
        )
        raise ConfigError(
            f"{path}: its run {config.run_folder} does not exist; train it first: python train.py "
            f"{path}{before}"
        )
    return config.run_folder


if __name__ == "__main__":
    main(*ARGUMENTS)
