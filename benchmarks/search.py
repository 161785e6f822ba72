"""Exact against approximate label search on clustered unit vectors, on one thread; prints a
Markdown table.

    # 10^5 labels, 64 dimensions: two minutes and a half
    python -m benchmarks.search
    python -m benchmarks.search --labels 10000 --m 32 --json search.json

Needs faiss-cpu. Run from the root of the repository. Seconds are processor time. build_s: making
the graph; ms_query: a query, in batches of 256 and, behind the slash, alone; recall: of the exact
result; memory_mb: what making the index and searching added to the process at its peak, on top of
the labels themselves (labels_mb). Linux only: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.table import show
from utils.config.config import EvalConfig
from utils.search import INDEXES, build_index

BATCH = 256


def clustered(
    labels: int, queries: int, dim: int, clusters: int, spread: float
) -> tuple[Tensor, Tensor]:
    """Unit vectors around random unit centres, and queries made alike: ([L, D], [B, D])."""
    generator = torch.Generator().manual_seed(0)
    centres = normalize(torch.randn(clusters, dim, generator=generator), dim=1)
    which = torch.randint(clusters, (labels + queries,), generator=generator)
    noise = torch.randn(labels + queries, dim, generator=generator) * (spread / dim**0.5)
    vectors = normalize(centres[which] + noise, dim=1)
    return vectors[:labels].contiguous(), vectors[labels:].contiguous()


def memory_mb(key: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) / 1024


def search_all(
    index,
    queries: Tensor,
    k: int,
    batch: int,
) -> tuple[Tensor, float]:
    """(label ids [B, k], milliseconds a query)."""
    started = time.process_time()
    ids = torch.cat([index.search(part, k)[1] for part in queries.split(batch)])
    return ids, (time.process_time() - started) * 1000 / len(queries)


def measure(name: str, options: argparse.Namespace) -> list[tuple[dict, Tensor]]:
    """The numbers of an index and the label ids it finds [B, k], for each ef; meant for a process
    of its own."""
    torch.set_num_threads(1)
    settings = EvalConfig(hnsw_m=options.m, hnsw_ef_construction=options.ef_construction)
    labels, queries = clustered(
        options.labels, options.queries, options.dim, options.clusters, options.spread
    )
    # what torch itself loads
    build_index("exact", labels[:1000], settings=settings).search(queries[:2], 1)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory_mb("VmRSS")
    started = time.process_time()
    index = build_index(name, labels, settings=settings)
    index.search(queries[:1], options.k)
    build = time.process_time() - started if name != "exact" else 0.0
    results = []
    for index.ef in options.ef if name != "exact" else [0]:
        ids, batched = search_all(index, queries, options.k, BATCH)
        _, single = search_all(index, queries[:100], options.k, 1)
        label = name if name == "exact" else f"hnsw, m {options.m}, ef {index.ef}"
        results.append(
            (
                {
                    "index": label,
                    "labels": options.labels,
                    "dim": options.dim,
                    "build_s": round(build, 1),
                    "ms_query": f"{batched:.3f} / {single:.3f}",
                    "labels_mb": round(labels.nbytes / 1e6),
                    "memory_mb": round(memory_mb("VmHWM") - before),
                },
                ids,
            )
        )
    return results


def run(options: argparse.Namespace) -> list[dict]:
    """The measurements, a dict for each index and ef."""
    results = []
    for name in INDEXES:
        # a fresh process: its own peak of memory
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results += pool.apply(measure, (name, options))
    exact = results[0][1]
    rows = []
    for numbers, ids in results:
        found = sum(len(set(a) & set(b)) for a, b in zip(ids.tolist(), exact.tolist(), strict=True))
        rows.append(
            {
                **numbers,
                "recall@1": round(float((ids[:, 0] == exact[:, 0]).float().mean()), 4),
                f"recall@{options.k}": round(found / exact.numel(), 4),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--labels", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument(
        "--spread", type=float, default=1.0, help="length of a vector's noise; the centre's is 1"
    )
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--m", type=int, default=EvalConfig().hnsw_m)
    parser.add_argument("--ef-construction", type=int, default=EvalConfig().hnsw_ef_construction)
    parser.add_argument(
        "--ef", type=int, nargs="+", default=[100, EvalConfig().hnsw_ef], help="one row for each"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the measurements here")
    options = parser.parse_args()
    rows = run(options)
    show(rows, options.json)


if __name__ == "__main__":
    main()
