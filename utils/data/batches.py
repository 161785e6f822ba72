"""Batches of texts as flat token ids: of training, shuffled, and of all texts in turn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from utils import distributed
from utils.config.config import Config
from utils.ragged import Ragged

if TYPE_CHECKING:
    from utils.data.dataset import Split

T = TypeVar("T")
AHEAD = 2  # batches that are ready while a GPU works on another


class Movable(ABC):
    """What knows which of its tensors move to the device of a step."""

    @abstractmethod
    def moved(self, move: Callable[[Tensor], Tensor]) -> Movable:
        """The same with tensors that were moved."""


def moved(value: T, move: Callable[[Tensor], Tensor]) -> T:
    """A value with its tensors moved, inside of dataclasses, lists, tuples and dicts too."""
    result: Any = value
    if isinstance(value, Tensor):
        result = move(value)
    elif isinstance(value, Movable):
        result = value.moved(move)
    elif isinstance(value, (list, tuple)):
        result = type(value)(moved(part, move) for part in value)
    elif isinstance(value, dict):
        result = {key: moved(part, move) for key, part in value.items()}
    elif is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: moved(getattr(value, field.name), move) for field in fields(value)}
        result = replace(value, **parts)
    return result


class TextBatch(Movable):
    """Texts of one batch as flat token ids.

    They are padded, where an encoder needs it, on the device to their own longest text.

    Attributes:
        ids: [tokens] int32 on the batch's device.
        offsets: [B + 1] int64 on the batch's device.
        host_lengths: [B], stays on the host: padding and splitting need no host sync.
        bag_index: made once by the bag encoder, for a batch that is encoded in every step.
    """

    def __init__(
        self, ids: Tensor, host_lengths: np.ndarray, offsets: Tensor | None = None
    ) -> None:
        if offsets is None:
            ends = np.concatenate([[0], np.cumsum(host_lengths)])
            offsets = torch.from_numpy(ends.astype(np.int64))
        self.ids = ids
        self.host_lengths = host_lengths
        self.offsets = offsets
        self.bag_index: Any = None

    @classmethod
    def take(cls, tokens: Ragged, rows: np.ndarray) -> TextBatch:
        """Gather these rows of a token file."""
        ids, lengths = tokens.take(rows)
        return cls(torch.from_numpy(ids), lengths)

    def __len__(self) -> int:
        return len(self.host_lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return int(self.host_lengths.max(initial=0))

    def moved(self, move: Callable[[Tensor], Tensor]) -> TextBatch:
        """The same texts with tensors that were moved."""
        return TextBatch(move(self.ids), self.host_lengths, move(self.offsets))

    def to(self, device: torch.device) -> TextBatch:
        if self.ids.device == device:
            return self
        return self.moved(lambda tensor: tensor.to(device, non_blocking=True))

    def split(self, size: int) -> list[TextBatch]:
        """Cut into micro-batches of at most `size` texts, in order."""
        if len(self) <= size:
            return [self]
        starts = range(0, len(self), size)
        return self.cut([slice(start, min(start + size, len(self))) for start in starts])

    def cut(self, slices: Sequence[slice]) -> list[TextBatch]:
        """The texts of each of some ranges."""
        ends = np.concatenate([[0], np.cumsum(self.host_lengths)])
        parts = []
        for part in slices:
            ids = self.ids[ends[part.start] : ends[part.stop]]
            offsets = self.offsets[part.start : part.stop + 1] - self.offsets[part.start]
            parts.append(TextBatch(ids, self.host_lengths[part], offsets))
        return parts

    def reordered(self, order: np.ndarray) -> TextBatch:
        """The texts at `order` [m], one behind the other."""
        lengths = self.host_lengths[order]
        ends = np.cumsum(self.host_lengths)
        starts = (ends - self.host_lengths)[order]
        shift = starts - (np.cumsum(lengths) - lengths)  # of a text's tokens
        index = np.repeat(shift, lengths) + np.arange(lengths.sum())
        device = self.ids.device
        texts = TextBatch(self.ids[torch.from_numpy(index).to(device)], lengths)
        return texts.moved(lambda tensor: tensor.to(device))

    def padded(self, pad_id: int) -> tuple[Tensor, Tensor]:
        """Return input ids and attention mask [B, T] int64, T = the longest text of the batch."""
        positions = torch.arange(self.longest, device=self.ids.device)
        mask = positions[None] < self.offsets.diff()[:, None]  # [B, T]
        index = (self.offsets[:-1, None] + positions[None]).clamp_(max=max(len(self.ids) - 1, 0))
        ids = self.ids.long()[index] if len(self.ids) else index
        return torch.where(mask, ids, pad_id), mask.long()


@dataclass
class Batch:
    """One step's points.

    The relevance covers the GLOBAL batch, the texts only this process's share of it.

    Attributes:
        ahead: what the recipe made of it before its turn (`Learner.ahead`), or None.
    """

    points: np.ndarray  # [B] positions in the split, whole batch
    relevance: sp.csr_matrix  # [B, L]
    filters: sp.csr_matrix  # [B, L]
    queries: TextBatch  # this process's share of the B texts
    key: tuple[int, ...]  # (seed, epoch, step), equal on all processes
    ahead: Any = None

    def to(self, device: torch.device) -> Batch:
        if self.queries.ids.device == device:
            return self
        return moved(self, lambda tensor: tensor.to(device, non_blocking=True))

    def rng(self) -> np.random.Generator:
        """Return what every random draw of the step comes from."""
        return np.random.default_rng(self.key)


class _Assembler(torch.utils.data.Dataset):
    """Item i = batch i, gathered at once; the loader's workers run it."""

    def __init__(
        self, split: Split, batches: list[np.ndarray], key: tuple[int, ...], first: int
    ) -> None:
        self.split = split
        self.batches = batches
        self.key = key
        self.first = first

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, step: int) -> Batch:
        points = self.batches[step]
        split = self.split
        share = distributed.share(len(points))
        rows = split.rows[points[share.start : share.stop]]
        assert split.tokens is not None, "points are batched for methods that read tokens"
        return Batch(
            points,
            split.relevance[points],
            split.filters[points],
            TextBatch.take(split.tokens, rows),
            (*self.key, self.first + step),
        )


def _loader(
    split: Split, batches: list[np.ndarray], key: tuple[int, ...], first: int, workers: int
) -> Iterator[Batch]:
    assembler = _Assembler(split, batches, key, first)
    # Its own generator: an iterator draws a seed when it is made, and one more draw in a resumed
    # epoch would shift every dropout mask after it.
    return iter(
        torch.utils.data.DataLoader(
            assembler,
            batch_size=None,
            num_workers=workers,
            generator=torch.Generator(),
        )
    )


def training_batches(
    split: Split, order: np.ndarray | None, config: Config, epoch: int, first_step: int = 0
) -> Iterator[Batch]:
    """Yield the batches of one epoch from `first_step` on.

    Args:
        order: positions in the split [n] in the order of the epoch; None = shuffled by seed and
            epoch.
    """
    if order is None:
        order = np.random.default_rng((config.run.seed, epoch)).permutation(len(split))
    size = config.train.batch_size
    batches = [order[i : i + size] for i in range(first_step * size, len(order), size)]
    return _loader(split, batches, (config.run.seed, epoch), first_step, config.data.workers)


def ready_batches(
    batches: Iterator[Batch], ahead: Callable[[Batch], Any], device: torch.device
) -> Iterator[Batch]:
    """Yield batches on the device, each with what can be made of it ahead of its turn.

    For a GPU a thread gathers, makes and pins the next ones while it works; a CPU has no time to
    spare, and each is made when it is asked for.
    """
    if device.type == "cpu":
        for batch in batches:
            batch.ahead = ahead(batch)
            yield batch
        return

    def next_one() -> Batch | None:
        batch = next(batches, None)
        if batch is None:
            return None
        batch.ahead = ahead(batch)
        return moved(batch, Tensor.pin_memory)

    card = torch.cuda.current_device()  # of this thread; another one begins with the first
    with ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(card,)) as thread:
        waiting = deque(thread.submit(next_one) for _ in range(AHEAD))
        while (ready := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next_one))
            yield ready.to(device)


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Return how many batches an epoch has, the last one perhaps smaller."""
    return -(-len(split) // batch_size)


def sequential_batches(
    tokens: Ragged, rows: np.ndarray, batch_size: int
) -> Iterator[tuple[np.ndarray, TextBatch]]:
    """Yield (positions in `rows`, texts), texts of similar length together: little padding."""
    order = np.argsort(-tokens.lengths[rows], kind="stable")
    for start in range(0, len(order), batch_size):
        positions = order[start : start + batch_size]
        yield positions, TextBatch.take(tokens, rows[positions])
