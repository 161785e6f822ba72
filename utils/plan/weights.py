"""Trained parameters, and what training holds beside them: optimizer state and gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from utils.plan.parts import RUNNING, STEP, UPDATE, Part
from utils.plan.run_sizes import RunSizes

SMALLER_ENCODER = "encoder.name or encoder.layers"
SHARED_OUT = "more processes (labels are shared out) or encoder.projection"
PAGE_FLOATS = 1024  # of a page of memory


@dataclass(frozen=True)
class Weights:
    """Parameters of one name that a process holds.

    Attributes:
        whole: parameters, over all processes. own: of them, this process's.
        largest: of the own, in the largest tensor.
        smaller: what makes them fewer.
        trained: False: frozen, without optimizer state and gradient.
    """

    name: str
    whole: int
    own: int
    largest: int
    smaller: str = SMALLER_ENCODER
    trained: bool = True

    def parts(self, cuda: bool) -> Iterator[Part]:
        """Weights, two moments, a gradient."""
        yield Part(f"weights: {self.name}", 4 * self.own, RUNNING, smaller=self.smaller)
        if not self.trained:
            return
        moments = 8 * self.own
        yield Part(f"optimizer state: {self.name}", moments, RUNNING, smaller=self.smaller)
        gradient = 4 * self.own
        yield Part(f"gradients: {self.name}", gradient, (STEP, UPDATE), smaller=self.smaller)


@dataclass(frozen=True)
class Table:
    """A row-sparse parameter: a step moves the rows that it touches alone.

    Attributes:
        rows: over all processes. own: of them, this process's.
        width: floats of a row. biases: floats of a row in a table of their own.
        touched: own rows that the whole run touches. step: those that a step touches, at most.
        summed: a step gives it several gradients, which a buffer of all rows adds up.
    """

    name: str
    rows: int
    own: int
    width: int
    touched: int
    step: int
    biases: int = 1
    smaller: str = "encoder.init"
    trained: bool = True
    summed: bool = False

    @property
    def whole(self) -> int:
        return self.rows * (self.width + self.biases)

    def parts(self, cuda: bool) -> Iterator[Part]:
        """Weights, moments, the gradient's rows and their ids, the buffer of several gradients.

        On the host, moments have memory where their pages are touched, and pages of weights that
        are not touched need not stay there; a GPU holds all.
        """
        weights = 4 * self.own * (self.width + self.biases)
        name = f"weights: {self.name}"
        yield Part(name, weights, RUNNING, smaller=self.smaller, sure=cuda)
        if not self.trained:
            return
        moments = 4 * (self.own if cuda else self._paged) * (2 * self.width + 1)
        name = f"optimizer state: {self.name}"
        yield Part(name, moments, RUNNING, smaller=self.smaller, sure=cuda)
        rows = 4 * self.step * (self.width + self.biases)
        name = f"gradients: {self.name}"
        yield Part(name, 5 * rows, (STEP, UPDATE), rows, smaller=self.smaller, sure=False)
        if self.summed:
            name = f"sums of gradients: {self.name}"
            yield Part(name, weights, (STEP, UPDATE), smaller=self.smaller, sure=False)

    @property
    def _paged(self) -> float:
        """Rows on pages of memory that the run touches, if touched rows lie anywhere."""
        missed = 1 - self.touched / max(self.own, 1)
        return self.own * (1 - missed ** (1 + PAGE_FLOATS / self.width))


def encoder_weights(
    sizes: RunSizes, tokens: int, step_tokens: int, trained: bool = True
) -> list[Weights | Table]:
    """The encoder, which every process holds whole.

    Args:
        tokens: of all texts that it is trained on. step_tokens: of those of a step.
    """
    encoder = sizes.encoder
    return [
        Weights("encoder, dense", encoder.dense, encoder.dense, encoder.largest, trained=trained),
        Table(
            "row-sparse table",
            encoder.table,
            encoder.table,
            encoder.width,
            touched=sizes.table_rows(tokens),
            step=sizes.table_rows(step_tokens),
            trained=trained,
            summed=True,
        ),
    ]


def label_rows(sizes: RunSizes, rows: int) -> Weights:
    """A classifier: a row and a bias for each label or class, shared out over processes."""
    dim = sizes.encoder.dim
    own = sizes.share(rows)
    return Weights("classifier", rows * (dim + 1), own * (dim + 1), own * dim, SHARED_OUT)


def counted(weights: Sequence[Weights | Table]) -> dict[str, int]:
    """Parameters by name."""
    return {each.name: each.whole for each in weights if each.whole}


def held(weights: Sequence[Weights | Table], cuda: bool) -> Iterator[Part]:
    """All that training holds of them, with the temporaries of the update."""
    for each in weights:
        yield from each.parts(cuda)
    dense = [each for each in weights if isinstance(each, Weights) and each.trained]
    if not dense:
        return
    most = max(dense, key=lambda each: each.own)
    # CUDA's optimizer updates all tensors at once, the CPU's one by one
    count = sum(each.own for each in dense) if cuda else max(each.largest for each in dense)
    yield Part(
        f"optimizer's temporaries, {most.name.partition(',')[0]}",
        8 * count,
        (UPDATE,),
        4 * count,
        smaller=most.smaller,
    )
