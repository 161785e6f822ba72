"""ELIAS's search on a made index, and the memory and time of its training step.

    # 10,000,000 labels, 131,072 clusters, D = 64
    python -m benchmarks.elias
    python -m benchmarks.elias --labels 1000000 --clusters 16384 --folder /tmp/index
    # a training step at B = 256, K = 2000, D = 768, and its time at 1,000,000 labels against
    # 100,000, with the bag encoder, with a transformer, and without any
    python -m benchmarks.elias --step

The index lies in a folder and is mapped. Labels hang on near clusters: w_l = unit(cluster + noise),
queries likewise.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from losses.shortlist import shortlist_bce
from models.elias.graph import Graph
from models.elias.index import GraphIndex
from models.elias.label_scores import pool_gradient, pool_scores
from models.elias.model import Edges, EliasModel
from models.elias.options import Elias1Config, Elias2Config, Limits, SearchSettings
from models.elias.search import forced_clusters
from models.encoders.building import build_encoder
from utils.config.config import EncoderConfig, OptimConfig
from utils.data.batches import TextBatch
from utils.row_store import PRECISIONS, RowStore
from utils.training.optim import build_optimizers

NOISE = 0.8  # of labels and queries around their cluster's centre


def unit(rows: np.ndarray) -> np.ndarray:
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def made_index(
    folder: Path, num_labels: int, num_clusters: int, dim: int, seed: int = 0
) -> np.ndarray:
    """Write the index of random clusters in all precisions; returns the clusters' centres [C,
    D]."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.standard_normal((num_clusters, dim), np.float32))
    RowStore.of(centres, "float32").save(folder, "clusters")
    parents = np.arange(num_labels) * num_clusters // num_labels
    rows = np.lib.format.open_memmap(folder / "labels.npy", "w+", np.float32, (num_labels, dim))
    for start in range(0, num_labels, 1 << 20):
        own = parents[start : start + (1 << 20)]
        rows[start : start + len(own)] = unit(
            centres[own] + NOISE / dim**0.5 * rng.standard_normal((len(own), dim), np.float32)
        )
    rows.flush()
    width = 2 * -(-num_labels // num_clusters)  # own labels, and those of one other cluster
    counts = np.bincount(parents, minlength=num_clusters)
    firsts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    other = (
        (np.arange(num_clusters) + 1 + rng.integers(num_clusters - 1, size=num_clusters))
        % num_clusters
        if num_clusters > 1
        else np.zeros(1, np.int64)
    )
    edges = np.full((num_clusters, width), -1, np.int32)
    for place in range(width // 2):
        edges[:, place] = np.where(place < counts, firsts + place, -1)
    for cluster in range(num_clusters):
        own = edges[cluster][edges[cluster] >= 0]
        more = firsts[other[cluster]] + np.arange(counts[other[cluster]])
        edges[cluster] = -1
        edges[cluster, : len(own) + len(more)] = np.concatenate([own, more])
    np.save(folder / "edges.npy", edges)
    np.save(folder / "log_edges.npy", np.log(rng.uniform(0.05, 1, edges.shape)).astype(np.float32))
    np.save(folder / "bias.npy", np.full(num_labels, -20, np.float32))
    del rows
    for name in ("clusters", "labels"):
        for precision in PRECISIONS[1:]:
            RowStore.of(np.load(folder / f"{name}.npy", mmap_mode="r"), precision).save(
                folder, name
            )
    return centres


def peak_memory() -> float:
    """Largest resident memory of this process in GB; pages of mapped files that were touched
    count."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def search(
    folder: Path,
    centres: np.ndarray,
    singles: int,
) -> None:
    settings = SearchSettings(10.0, 0.05, 0.05, 20, 2000)
    rng = np.random.default_rng(1)
    some = rng.integers(len(centres), size=2048)
    queries = torch.from_numpy(
        unit(
            centres[some]
            + NOISE
            / centres.shape[1] ** 0.5
            * rng.standard_normal((2048, centres.shape[1]), np.float32)
        )
    )
    exact = None
    for precision in PRECISIONS:
        index = GraphIndex.load(folder, settings, precision)
        for query in queries[:50]:  # warm-up
            index.search(query[None], 10)
        times = []
        used = time.process_time()
        for query in queries[:singles]:
            start = time.perf_counter()
            index.search(query[None], 10)
            times.append(time.perf_counter() - start)
        used = (time.process_time() - used) / singles
        batches = [queries[i : i + 256] for i in range(0, 2048, 256)]
        start = time.perf_counter()
        cpu = time.process_time()
        ids = torch.cat([index.search(batch, 10)[1] for batch in batches])
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        exact = ids if exact is None else exact
        same = np.mean(
            [len(set(a) & set(b)) / 10 for a, b in zip(ids.tolist(), exact.tolist(), strict=True)]
        )
        print(
            f"| {precision} | {1000 * np.median(times):.2f} ms | {1000 * used:.2f} ms | "
            f"{2048 / seconds:.0f} /s | {2048 / cpu:.0f} /s | {100 * same:.1f} % | "
            f"{peak_memory():.2f} GB |",
            flush=True,
        )
        del index
        gc.collect()


def made_encoder(kind: str, dim: int) -> torch.nn.Module:
    """minilm: all-MiniLM-L6-v2; bag: its token embeddings, both D = 384; none: nothing, and queries
    are random."""
    if kind == "none":
        encoder = torch.nn.Identity()
        encoder.dim = dim
        return encoder
    return build_encoder(
        EncoderConfig(
            name=kind,
            init="minilm" if kind == "bag" else None,
            token_weights="equal",
            residual=False,
        ),
        None,
    )


def made_step(
    num_labels: int,
    batch: int,
    size: int,
    dim: int,
    kappa: int,
    learned: bool,
    kind: str = "none",
    clusters: int | None = None,
):
    """(a function that takes one training step, bytes of its parameters and their moments);
    clusters: default as many as published, 2^ceil(log2(L / 100))."""
    torch.manual_seed(0)
    settings = {"K": size, "kappa": kappa, "tau": 0.05}
    config = (
        Elias2Config(name="elias-2", **settings)
        if learned
        else Elias1Config(name="elias-1", **settings)
    )
    clusters = clusters or 1 << max(0, (-(-num_labels // 100) - 1).bit_length())
    encoder = made_encoder(kind, dim)
    limits = Limits.of(config, clusters, num_labels)
    model = EliasModel(encoder, config, limits, (clusters, num_labels))
    rng = np.random.default_rng(0)
    first = rng.integers(num_labels, size=(clusters, 1))
    labels = np.sort((first + np.arange(kappa) * (num_labels // kappa)) % num_labels, 1).astype(
        np.int32
    )
    graph = Graph(labels, np.ones(labels.shape, np.float32), num_labels)
    edges = Edges.of(graph, limits, torch.device("cpu"))
    groups = [
        {"name": n, "params": [p], "weight_decay": 0.0}
        for n, p in model.named_parameters()
        if n != "bias"
    ]
    optimizers = build_optimizers(groups, OptimConfig(lr=1e-3))
    parents = torch.from_numpy(rng.integers(clusters, size=(batch, 5)))
    fill = torch.from_numpy(rng.integers(clusters, size=(batch, 25)))
    noise = torch.from_numpy(rng.gumbel(size=(batch, 50))).float()

    def step() -> None:
        if kind != "none":  # texts of 18 tokens, as long as a title
            queries = encoder(
                TextBatch(
                    torch.randint(1000, 20_000, (18 * batch,), dtype=torch.int32),
                    np.full(batch, 18),
                )
            )
        else:
            queries = F.normalize(torch.randn(batch, dim), dim=1).requires_grad_()
        raised = model.raised_shares(queries)
        searched = forced_clusters(raised, 20, parents, fill, noise)
        found, paths = model.best_paths(edges, queries, raised, searched)
        inside = found.labels >= 0
        ids = found.labels.clamp(min=0)
        scores = pool_scores(queries, model.labels, ids)
        scores.retain_grad()
        positive = torch.zeros_like(inside)
        positive[:, :5] = True
        loss = (
            shortlist_bce(
                logits=scores / 0.05,
                log_paths=paths,
                positive=positive,
                counted=inside,
            )
            / batch
        )
        loss.backward()
        rows = pool_gradient(ids, inside, scores.grad, queries)
        model.labels.factors = rows
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step, 3 * 4 * sum(p.numel() for p in model.parameters())  # AdamW's two moments


def measure_step(*sizes: int, kind: str, clusters: int | None) -> tuple[float, float]:
    """(seconds of CPU time a step, GB above weights and moments)."""
    step, held = made_step(*sizes, kind, clusters)
    before = resident()
    step()
    step()
    times = []
    for _ in range(5):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    above = (
        peak_memory() - before - max(0.0, held / 2**30 * 2 / 3)
    )  # the moments are made at the first step
    return float(np.median(times)), above


def resident() -> float:
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--labels", type=int, default=10_000_000)
    parser.add_argument("--clusters", type=int, default=131_072)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--singles", type=int, default=500, help="queries searched one by one")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--folder", help="where the index lies; default: a temporary folder")
    parser.add_argument("--step", action="store_true", help="measure training steps")
    parser.add_argument(
        "--one",
        nargs=6,
        type=int,
        metavar=("L", "B", "K", "D", "kappa", "learned"),
        help="one training step of these sizes",
    )
    parser.add_argument(
        "--step-clusters", type=int, help="clusters of that step; default 2^ceil(log2(L / 100))"
    )
    parser.add_argument(
        "--encoder", choices=("none", "bag", "minilm"), default="none", help="of that step"
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.one:
        seconds, above = measure_step(
            *options.one, kind=options.encoder, clusters=options.step_clusters
        )
        return print(f"{seconds:.3f} s of CPU time, {above:.2f} GB above weights and moments")
    if options.step:
        return steps()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        centres = (
            np.load(folder / "clusters.npy")
            if (folder / "labels.int8.npy").is_file()
            else made_index(folder, options.labels, options.clusters, options.dim)
        )
        print(
            f"{options.labels:,} labels, {len(centres):,} clusters, D = {centres.shape[1]}, beam "
            f"20, K 2000, "
            f"{torch.get_num_threads()} threads; peak memory so far {peak_memory():.2f} GB\n"
        )
        print(
            "| precision | one query, median | its CPU time | batches of 256 | per CPU second | "
            "top 10 as float32 | peak memory |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- |")
        search(folder, centres, options.singles)


def steps() -> None:
    """Each in a process of its own, so that peaks do not mix."""
    import subprocess
    import sys

    print("| encoder | C | L | B | K | D | kappa | stage | step |\n" + "| --- " * 9 + "|")
    for kind, clusters, *sizes in (
        ("none", 1024, 100_000, 256, 2000, 768, 1000, 1),
        *(
            (kind, clusters, labels, 64, 500, dim, kappa, 1)
            for kind, dim, kappa in (("none", 64, 1000), ("bag", 384, 1000), ("minilm", 384, 200))
            for labels, clusters in ((1_000_000, 16_384), (100_000, 16_384), (100_000, 1024))
        ),
    ):
        got = subprocess.run(
            [
                sys.executable,
                "-m",
                "benchmarks.elias",
                "--encoder",
                kind,
                "--step-clusters",
                str(clusters),
                "--one",
                *map(str, sizes),
            ],
            text=True,
            capture_output=True,
            check=True,
        )
        print(
            f"| {kind} | {clusters} | " + " | ".join(map(str, sizes[:5])) + f" | {sizes[5] + 1} | "
            f"{got.stdout.strip()} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
