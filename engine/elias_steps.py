"""ELIAS's offline steps, of which `elias_utils.py` is the command line.

Graphs made ahead of a run, the ranker on top of one, smaller weights, plots.

    gen_cluster_A(config)                 # stage 1's graph, where `train.py CONFIG` looks for it
    gen_approx_A("Results/run")           # stage 2's, where runs that start from this one look
    sparse_ranker("Results/run")          # ELIAS++
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.planning import with_resolved_encoder
from engine.trainer import fit, read_data
from models.elias.first_graph import approximate, cluster, point_embeddings
from models.elias.graph import Graph, check_graph
from models.elias.learner import Elias
from models.elias.made_graphs import Origin, approx_origin, cluster_origin
from models.elias.options import Limits
from models.elias.ranker import GraphRanker
from models.elias.report import draw
from models.loading import load_ranker
from utils import distributed
from utils.config.config import Config, ConfigError, finish_config, to_mapping
from utils.config.graph_places import approx_file, cluster_file
from utils.config.methods import method_class
from utils.data.dataset import Dataset
from utils.errors import InputError
from utils.row_store import RowStore
from utils.run.finding import find_run
from utils.runtime import Runtime

log = logging.getLogger("elias_utils")


def gen_cluster_A(
    source: Config | str | Path,
    model: bool = True,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Write balanced clusters of the labels' centroids (A of stage 1) to a file; a collective.

    Args:
        source: a config, or a run folder or its config.yaml.
        model: cluster by embeddings too, beside TF-IDF features: by the model of the run, for a
            config by that of `run.start_from`, or of the run that it has trained; one that has
            neither has TF-IDF features alone.
        out: default <folder of the run>.cluster_A.npz, where a run of the config looks for it.
        overrides: of a run's config, as eval.py takes them.
    """
    start = None
    if isinstance(source, Config):
        config = source
        if model:
            start = _model_of(config)
    else:
        folder, config = find_run(source, overrides)
        check_is_elias("gen_cluster_A", folder, config)
        here = dataclasses.replace(config.run, dir=str(folder))  # the run may have been moved
        config = dataclasses.replace(config, run=here)
        if model:
            start = folder
    if not is_elias(config):
        raise ConfigError(
            f"gen_cluster_A: expected a config of elias-1 or elias-2, got {config.method.name}"
        )
    if config.stages and out is None:
        raise ConfigError(
            "gen_cluster_A: this config has stages, each of which makes its own graph; name a "
            "config of one stage, or say where the graph goes: --out FILE"
        )
    runtime, data = _start(config)
    points = None
    if start is not None:
        log.info("clustering by TF-IDF features and the embeddings of %s", start)
        reader = load_ranker(find_run(start)[1], start, runtime).reader
        if reader is None:
            raise InputError(f"{start}: the run has no encoder whose embeddings could be features")
        points = point_embeddings(reader, data)
    graph = cluster(data, config.method, points)
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


def gen_approx_A(
    run: str | Path,
    kappa: int | None = None,
    out: str | Path | None = None,
) -> Path:
    """Write the labels that each cluster of a finished run attracts (A of stage 2) to a file.

    A collective.

    Args:
        run: run folder or its config.yaml.
        kappa: edges of a cluster, at most; default what the run's config says.
        out: default <run>/approx_A.npz, where the runs that start from this one look for it.
    """
    folder, config = find_run(run)
    check_is_elias("gen_approx_A", folder, config)
    runtime, data = _start(config)
    ranker = load_ranker(config, folder, runtime)
    assert isinstance(ranker, GraphRanker)
    limits = Limits.of(config.method, len(ranker.graph.clusters), data.num_labels)
    kappa = limits.kappa if kappa is None else kappa
    if not isinstance(kappa, int) or not 1 <= kappa <= data.num_labels:
        raise ConfigError(
            "method.kappa must be a whole number from 1 to the number of labels, "
            f"{data.num_labels}; got {kappa!r}"
        )
    limits = dataclasses.replace(limits, kappa=kappa)
    before = ranker.learned_graph()
    scores_of = ranker.graph.log_cluster_scores
    graph = approximate(ranker.reader, scores_of, data.splits["trn"], before, limits)
    return _write(
        check_graph(graph, before.num_clusters, kappa, "A'"),
        out or approx_file(folder),
        lambda: approx_origin(data, folder, kappa, limits.beam),
    )


def sparse_ranker(
    run: str | Path,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Train ELIAS++ on top of a run, in <run>-ranker; a collective.

    It is a run of method elias-ranker that starts from this one.
    """
    folder, config = find_run(run)
    check_is_elias("sparse_ranker", folder, config)
    mapping = to_mapping(config)
    mapping.pop("stages", None)
    mapping["method"] = {"name": "elias-ranker", "calibrate": config.method.ranker_calibrate}
    mapping["optim"]["group_lr"] = None  # nothing is trained by gradient
    mapping["run"] |= {
        "start_from": str(folder),
        "dir": str(folder.with_name(f"{folder.name}-ranker")),
    }
    ranker = finish_config(mapping, {}, overrides, expname=folder.name)
    return fit(ranker, overwrite=overwrite)


def quantize(run: str | Path, precision: str = "int8") -> Path:
    """Write a run's cluster and label classifiers in another precision beside the float32 ones.

    `eval.py RUN --eval.precision int8` maps them then; without them it converts them in memory,
    each time.

    Returns:
        the model's folder.
    """
    folder, config = find_run(run)
    model = folder / "model" / ("" if is_elias(config) else "elias")
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
    check_is_elias("report", folder, config)
    return draw(folder)


# -------------------------------- what the steps share


def is_elias(config: Config) -> bool:
    """Whether a config is of a run with a graph of its own."""
    return issubclass(method_class(config.method.name), Elias)


def check_is_elias(
    step: str,
    folder: Path,
    config: Config,
) -> None:
    """ConfigError for a run of another method."""
    if not is_elias(config):
        raise ConfigError(_other_run(step, folder, config))


def _other_run(
    step: str,
    folder: Path,
    config: Config,
) -> str:
    """The message for a run of another method.

    The whole recipe's run has the elias runs in its stages.
    """
    paths = [path.parent for path in sorted(folder.glob("stages/*/config.yaml"))]
    stages = [str(path) for path in paths if is_elias(find_run(path)[1])]
    there = f"; those of its stages are {' and '.join(stages)}" if stages else ""
    return f"{step}: expected an elias run, {folder} is one of {config.method.name}{there}"


def _start(config: Config) -> tuple[Runtime, Dataset]:
    runtime = Runtime.start(config)
    return runtime, read_data(with_resolved_encoder(config), resume=False)


def _write(
    graph: Graph,
    path: str | Path,
    origin: Callable[[], Origin],
) -> Path:
    path = Path(path)
    if distributed.is_main():
        path.parent.mkdir(parents=True, exist_ok=True)
        graph.save(path, origin())
    distributed.barrier()
    return path
