"""One system of `benchmarks.compare`: trains or answers in a process of its own, by its own
interpreter.

    PYTHON -m benchmarks.compare_worker {train,answer} TASK.json

Imports nothing but numpy, scipy, scikit-learn and the system, which may be this project itself.
`train` begins with the data set's files and ends with the model in the work folder; `answer` loads
it, ranks the test points and then texts as they come. Both write PHASE.json: seconds of the wall
and of the processor, megabytes. Imports, writing another input format and compiling this project's
kernels, which happens once in a machine's life, are not counted.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from benchmarks.compare_linear import Bonsai, NapkinXC, Parabel, Pecos
from benchmarks.compare_sentence import SentenceTransformer, StaticEmbedding
from utils.text import iter_lines

SINGLE_TEXTS = 200  # answered one by one for the latency
BATCH, BATCHES = 256, 10  # texts answered at once, and how often


@dataclass(frozen=True)
class Task:
    """What to measure.

    Attributes: system, a key of SYSTEMS; data, the data set's folder; features, that of
    X.{trn,tst}.npz and Xf.txt; work, an empty folder; top, labels to rank a point; minutes, what
    sentence-transformers may train; config, the YAML of `ours`.
    """

    system: str
    data: str
    features: str
    work: str
    threads: int
    top: int
    minutes: float
    seed: int = 0
    config: str = ""

    @property
    def run(self) -> Path:
        return Path(self.work) / "run"

    @property
    def model(self) -> Path:
        """Where the model lies that is measured."""
        return self.run / "model"

    def matrix(self, name: str) -> sp.csr_matrix:
        folder = self.features if name.startswith("X.") else self.data
        matrix = sp.csr_matrix(sp.load_npz(Path(folder) / f"{name}.npz")).astype(np.float32)
        matrix.sum_duplicates()
        return matrix

    def texts(self, name: str) -> list[str]:
        """Lines of a text file; none where the data set has no such file."""
        path = Path(self.data) / "raw" / f"{name}.txt"
        return list(iter_lines(path)) if path.exists() else []


class Ours:
    """A config of this project, all its stages, by `train.fit`; test points ranked by
    `eval.evaluate`."""

    def __init__(self, task: Task) -> None:
        import numba.core.event as events

        import eval
        import train
        from predict import Predictor
        from utils.config.config import load_config

        self.task = task
        self.events = events
        self.fit = train.fit
        self.evaluate = eval.evaluate
        self.kind = Predictor
        folder = Path(task.data)
        # A tree selects nothing on validation points: it may learn from them, as the other trees
        # do.
        config = load_config(task.config)
        whole = config.method.name in ("xr-linear", "overlap") and not config.stages
        self.config = load_config(
            task.config,
            {
                "data": {
                    "root": str(folder.parent),
                    "name": folder.name,
                    **({"val_fraction": 0.0} if whole else {}),
                },
                "run": {
                    "dir": str(task.run),
                    "seed": task.seed,
                    "threads": task.threads,
                    "tensorboard": False,
                },
            },
        )
        self.predictor = None
        # a tree can make features of new texts
        self.reads_texts = (Path(task.features) / "Xf.txt").exists()

    def before(self) -> None:
        pass

    def train(self) -> dict[str, Any]:
        compiling = _compile_clock(self.events)
        # not fired when compiled code is read from the disk
        self.events.register("numba:compile", compiling)
        self.fit(self.config)
        return {
            "compile_s": compiling.seconds,
            "notes": f"best epoch {self._best_epoch}" if self._best_epoch else "",
        }

    @property
    def _best_epoch(self) -> int:
        return json.loads((self.task.run / "finished").read_text())["best_epoch"]

    def open(self) -> None:
        self.predictor = self.kind(
            self.task.run, overrides=["--run.threads", str(self.task.threads)]
        )

    def rank_points(self) -> sp.csr_matrix:
        self.evaluate(self.task.run, overrides=["--run.threads", str(self.task.threads)])
        return sp.load_npz(self.task.run / "tst_score_mat.npz")

    def rank_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        from utils.data.texts import ListTexts  # here: environments of others lack torch

        return self.predictor.ranker.open(ListTexts(texts)).best(self.task.top)


SYSTEMS = {
    "ours": Ours,
    "pecos": Pecos,
    "omikuji-parabel": Parabel,
    "omikuji-bonsai": Bonsai,
    "napkinxc": NapkinXC,
    "st-minilm": SentenceTransformer,
    "st-static": StaticEmbedding,
}


def _processor_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _compile_clock(events: Any) -> Any:
    """A listener of numba's: its `seconds`, wall and processor time, are those of all
    compilations."""

    class Clock(events.Listener):
        depth = 0
        seconds = (0.0, 0.0)  # a compilation may start others

        def on_start(self, event: Any) -> None:
            if self.depth == 0:
                self.since = time.perf_counter(), time.process_time()
            self.depth += 1

        def on_end(self, event: Any) -> None:
            self.depth -= 1
            if self.depth == 0:
                now = time.perf_counter(), time.process_time()
                self.seconds = tuple(
                    s + n - t for s, n, t in zip(self.seconds, now, self.since, strict=True)
                )

    return Clock()


def _peak_mb() -> float:
    """Largest resident memory since this program started."""
    line = next(
        x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")
    )
    return int(line.split()[1]) / 1024


def train(system: Any, task: Task) -> dict[str, Any]:
    task.run.mkdir()
    system.before()
    wall = time.perf_counter()
    cpu = _processor_seconds()
    told = {"compile_s": (0.0, 0.0), "notes": "", **system.train()}
    wall, cpu = (
        now - then - compiled
        for now, then, compiled in zip(
            (time.perf_counter(), _processor_seconds()),
            (wall, cpu),
            told.pop("compile_s"),
            strict=True,
        )
    )
    size = sum(path.stat().st_size for path in task.model.rglob("*") if path.is_file()) / 1e6
    return {**told, "wall_s": wall, "cpu_s": cpu, "peak_mb": _peak_mb(), "model_mb": size}


def answer(system: Any, task: Task) -> dict[str, Any]:
    """Scores of the test points to WORK/scores.npz. Median milliseconds of the processor a text, in
    batches and alone; None where the system or the data set has no texts."""
    system.open()
    sp.save_npz(Path(task.work) / "scores.npz", system.rank_points(), compressed=False)
    texts = task.texts("tst_X") if system.reads_texts else []

    def milliseconds(parts: list[list[str]]) -> float | None:
        taken = []
        for part in parts[:2] + parts:  # the first ones only warm up
            began = _processor_seconds()
            system.rank_texts(part)
            taken.append(1000 * (_processor_seconds() - began) / len(part))
        return float(np.median(taken[min(2, len(parts)) :])) if parts else None

    return {
        "batch_ms": milliseconds(
            [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)][:BATCHES]
        ),
        "text_ms": milliseconds([[text] for text in texts[:SINGLE_TEXTS]]),
        "peak_mb": _peak_mb(),
    }


def main(phase: str, file: str) -> None:
    task = Task(**json.loads(Path(file).read_text(encoding="utf-8")))
    numbers = {"train": train, "answer": answer}[phase](SYSTEMS[task.system](task), task)
    (Path(task.work) / f"{phase}.json").write_text(json.dumps(numbers), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
