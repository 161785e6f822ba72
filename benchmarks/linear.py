"""Linear trees side by side: this project's, libpecos, omikuji, napkinXC, each in a process and environment of its own.

    python -m benchmarks.linear Datasets/LF-DebianTitles-small
    python -m benchmarks.linear DATA_FOLDER --threads 1 2 --systems pecos omikuji-parabel --peers DIR --json FILE

Run from the root of the repository. All systems get the features X.{trn,tst}.npz and the same threads, rank 100 labels
a test point, and are measured by `utils.metrics` with the pairs of filter_labels_test.txt removed. The environments
are made in the folder --peers when missing, by pip. Columns: cpu_s is user + system time; peak_mb the largest resident
memory of the process that trains, of which before_mb was there before training (libraries and data); model_mb the files
on disk; ms_point the processor time of ranking all test points, divided by them; single_ms the median wall time of
ranking one point alone. Compiling this project's kernels comes before training and is reported as compile_s; it is a
matter of seconds the first time, and of a fraction of one from then on.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from benchmarks.table import show
from utils.data import load_filter
from utils.metrics import evaluate, inverse_propensity
from utils.sparse import check_relevance, remove_pairs

WORKER = Path(__file__).with_name("linear_peers.py")


@dataclass(frozen=True)
class Peer:
    """A package of its own environment: folder, what pip installs, what must be importable then."""
    folder: str
    packages: tuple[str, ...]
    module: str

    def python(self, peers: Path) -> str:
        """The interpreter of the environment, made or completed first if needed; ValueError if that fails."""
        python = peers / self.folder / "bin" / "python"
        if not python.is_file():
            print(f"making {peers / self.folder}", file=sys.stderr)
            _run([sys.executable, "-m", "venv", str(peers / self.folder)])
        if subprocess.run([python, "-c", f"import numpy, scipy, {self.module}"], capture_output=True).returncode:
            print(f"installing {', '.join(self.packages)}", file=sys.stderr)
            _run([str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *self.packages])
        return str(python)


@dataclass(frozen=True)
class Ours:
    """This project, in the environment that runs the benchmark."""

    def python(self, peers: Path) -> str:
        return sys.executable


PECOS = Peer("pecos", ("libpecos==1.2.8",), "pecos")
OMIKUJI = Peer("omikuji", ("omikuji==0.5.2", "numpy", "scipy"), "omikuji")
NAPKINXC = Peer("napkin", ("napkinxc==0.7.2", "numpy", "scipy"), "napkinxc")
SYSTEMS = {"xmckit": Ours(), "xmckit-3-trees": Ours(), "pecos": PECOS, "omikuji-parabel": OMIKUJI,
           "omikuji-bonsai": OMIKUJI, "napkinxc": NAPKINXC}


def _run(command: list[str], **options: object) -> None:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode:
        raise ValueError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout)[-2000:]}")


@dataclass(frozen=True)
class Data:
    """A data set's folder, its test relevance and filter [N, L], and inverse propensities [L]."""
    folder: Path
    relevance: sp.csr_matrix
    filters: sp.csr_matrix
    inverse: np.ndarray

    @classmethod
    def load(cls, folder: Path, a: float, b: float) -> Data:
        wanted = [folder / f"{kind}.{split}.npz" for kind in "XY" for split in ("trn", "tst")]
        for path in wanted:
            if not path.is_file():
                raise ValueError(f"{path}: no such file; python -m utils.features {folder} builds features from text")
        trn, tst = (check_relevance(sp.load_npz(path), str(path)) for path in wanted[2:])
        counts = np.bincount(trn.indices, minlength=trn.shape[1])
        return cls(folder, tst, load_filter(folder / "filter_labels_test.txt", tst.shape),
                   inverse_propensity(counts, trn.shape[0], a, b))

    def metrics(self, scores: sp.csr_matrix) -> dict[str, float]:
        """All metrics of scores [N, L], filter pairs removed."""
        return evaluate(remove_pairs(scores, *self.filters.nonzero()), self.relevance, self.inverse)


def measure(system: str, python: str, data: Data, threads: int) -> dict:
    """Train and predict with a system in two processes; its row of the table."""
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(variables, str(threads))}
    environment.pop("PYTHONPATH", None)
    if python == sys.executable:
        environment["PYTHONPATH"] = str(WORKER.parent.parent)
    with tempfile.TemporaryDirectory() as work:
        for phase in ("train", "predict"):
            _run([python, str(WORKER), system, phase, str(data.folder), work, str(threads)], env=environment)
        trained, predicted = (json.loads((Path(work) / f"{phase}.json").read_text()) for phase in ("train", "predict"))
        metrics = data.metrics(sp.load_npz(Path(work) / "scores.npz"))
    quality = {key: round(metrics[key], 2) for key in ("P@1", "P@3", "P@5", "PSP@1", "PSP@5", "R@10", "R@100")}
    return {"system": system, "threads": threads, **quality,
            "compile_s": round(trained["before_s"], 1) if system.startswith("xmckit") else "",
            "train_wall_s": round(trained["wall_s"], 1), "train_cpu_s": round(trained["cpu_s"], 1),
            "peak_mb": round(trained["peak_mb"]), "before_mb": round(trained["before_mb"]),
            "model_mb": round(trained["model_mb"], 1),
            "ms_point": round(1000 * predicted["cpu_s"] / predicted["points"], 3),
            "predict_wall_s": round(predicted["wall_s"], 2), "single_ms": round(predicted["single_ms"], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="data set folder")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--peers", type=Path, default=Path(tempfile.gettempdir()) / "xmckit-peers")
    parser.add_argument("--propensity", type=float, nargs=2, default=(0.55, 1.5), metavar=("A", "B"))
    parser.add_argument("--json", metavar="FILE", help="also write the measurements here")
    options = parser.parse_args()
    try:
        data = Data.load(options.data, *options.propensity)
        pythons = {name: SYSTEMS[name].python(options.peers.absolute()) for name in options.systems}
        rows = [measure(name, python, data, threads) for threads in options.threads for name, python in pythons.items()]
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    show(rows, options.json)


if __name__ == "__main__":
    main()
