"""Section `losses`: streamed losses beside float64, and beside the released full-matrix formula."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.card import device, peak_mib, release, wait
from benchmarks.gpu.place import Place
from benchmarks.gpu.report import Row
from benchmarks.gpu.sizes import LossSize
from benchmarks.losses import POSITIVES, TAU, naive
from losses import LOSSES, Positives
from utils.runtime import tensor_cores

ERRORS = {"float32": 1e-4, "TF32": 0.05}  # of a gradient beside float64's; TF32 has 11 bits
TIME = 1.3  # of the full-matrix formula's
MEMORY = 0.1
REPEATS = 5
LOSS_CASES = {f"{name}, {kind}": (name, kind) for kind in ERRORS for name in LOSSES}

Step = Callable[[], None]


@dataclass(frozen=True)
class Inputs:
    """Embeddings of length 1, queries [B, D] and labels [L, D], and who belongs to whom.

    Attributes:
        chunk: labels that a loss sees at once; None = it chooses.
    """

    queries: Tensor
    labels: Tensor
    positives: Positives
    chunk: int | None

    @classmethod
    def made(cls, size: LossSize) -> Inputs:
        """Random ones in float64."""
        torch.manual_seed(0)
        on = device()
        queries = torch.randn(size.queries, size.dim, dtype=torch.float64, device=on)
        labels = torch.randn(size.labels, size.dim, dtype=torch.float64, device=on)
        rows = torch.arange(size.queries, device=on).repeat_interleave(POSITIVES)
        first = torch.arange(size.queries, device=on).repeat_interleave(POSITIVES) * 7919
        apart = torch.arange(POSITIVES, device=on).repeat(size.queries)
        cols = (first + apart * (size.labels // POSITIVES)) % size.labels
        positives = Positives.build(rows, cols, size.queries)
        return cls(
            functional.normalize(queries), functional.normalize(labels), positives, size.chunk
        )

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same in another precision, without gradients."""
        queries = self.queries.to(dtype).detach().requires_grad_()
        labels = self.labels.to(dtype).detach().requires_grad_()
        return Inputs(queries, labels, self.positives, self.chunk)

    def step(self, loss: str, full: bool = False) -> Step:
        """Forward and backward by the streamed loss, or by the formula of the whole matrix."""

        def run() -> None:
            self.queries.grad = None
            self.labels.grad = None
            if full:
                value = naive(loss, self.queries, self.labels, self.positives, TAU)
            else:
                value = LOSSES[loss](
                    queries=self.queries,
                    labels=self.labels,
                    positives=self.positives,
                    tau=TAU,
                    chunk=self.chunk,
                )
            value.backward()

        return run

    def gradients(self, loss: str) -> tuple[Tensor, Tensor]:
        """Those of queries [B, D] and labels [L, D] by the streamed loss."""
        self.step(loss)()
        assert self.queries.grad is not None
        assert self.labels.grad is not None
        return self.queries.grad, self.labels.grad


def losses(place: Place, name: str) -> Row:
    """One loss, in one precision of products."""
    loss, kind = LOSS_CASES[name]
    inputs = Inputs.made(place.sizes.timed).to(torch.float32)
    with tensor_cores(kind == "TF32"):
        error = gradient_error(loss, place.sizes.exact)
        ms, mib = timed(inputs.step(loss))
        full_ms, full_mib = timed(inputs.step(loss, full=True))
    return {
        "gradient error": error,
        "allowed": ERRORS[kind],
        "ms": ms,
        "full matrix ms": full_ms,
        f"times (target {TIME})": ms / full_ms,
        "MiB": mib,
        "full matrix MiB": full_mib,
        f"share (target {MEMORY})": mib / full_mib if mib and full_mib else None,
        "target met": ms <= TIME * full_ms and _is_small(mib, full_mib),
        "ok": error <= ERRORS[kind],
    }


def _is_small(mib: float | None, full_mib: float | None) -> bool | None:
    """None where memory is not measured."""
    return None if mib is None or full_mib is None else mib <= MEMORY * full_mib


def gradient_error(loss: str, size: LossSize) -> float:
    """The larger relative error of both gradients in float32, beside those in float64."""
    made = Inputs.made(size)
    exact = made.to(torch.float64).gradients(loss)
    rounded = made.to(torch.float32).gradients(loss)
    pairs = zip(exact, rounded, strict=True)
    return max(float((one - other).norm() / one.norm()) for one, other in pairs)


def timed(step: Step) -> tuple[float, float | None]:
    """Milliseconds of a step, and MiB that it needs above its inputs and their gradients."""
    step()
    release()
    wait()
    before = peak_mib(since_now=True)
    started = time.perf_counter()
    for _ in range(REPEATS):
        step()
    wait()
    seconds = (time.perf_counter() - started) / REPEATS
    after = peak_mib()
    above = None if before is None or after is None else after - before
    return 1000 * seconds, above
