"""Sizes of a training run on some processes: what the parts of a plan are worked out from."""

from __future__ import annotations

from functools import cached_property
from math import ceil

import psutil

from utils.cards import gpu_computes
from utils.config.config import Config
from utils.errors import InputError
from utils.plan.encoder_sizes import EncoderSizes, encoder_sizes
from utils.plan.sizes import Assumed, DataShape, Texts, data_shape

HERE = Assumed()  # the data set and the cards of this machine


class RunSizes:
    """Sizes of one stage on `processes`; files are read when their sizes are asked for.

    Attributes:
        config: its encoder's settings are resolved.
        cuda: whether a GPU computes, here or where the plan is for.
        program: bytes that this process holds: interpreter and libraries loaded until now.
    """

    def __init__(
        self,
        config: Config,
        processes: int,
        assumed: Assumed = HERE,
    ) -> None:
        if processes < 1:
            raise InputError(f"expected at least one process, got {processes}")
        self.config = config
        self.processes = processes
        self.cuda = gpu_computes() or assumed.gpu is not None
        # now, for reading the encoder's sizes may import what is counted apart
        self.program = resident()
        self._assumed = assumed

    @cached_property
    def data(self) -> DataShape:
        return self._assumed.shape(self.config) or data_shape(self.config)

    @cached_property
    def encoder(self) -> EncoderSizes:
        return encoder_sizes(self.config)

    @property
    def unpadded(self) -> bool:
        """Whether texts are encoded without padding."""
        packing = self.config.encoder.packing
        asked = packing is True or (packing == "auto" and self.cuda)
        return not self.encoder.layers or (asked and self.encoder.can_pack)

    @property
    def queries(self) -> Texts:
        """Texts of the training points."""
        return self.data.texts["trn_X"]

    @property
    def label_texts(self) -> Texts:
        return self.data.texts["Y"]

    @property
    def mean_positives(self) -> float:
        """Labels of a training point on average."""
        return self.data.entries[0] / max(self.data.points, 1)

    @property
    def held_out(self) -> int:
        """Validation points."""
        section = self.config.data
        return min(round(section.val_fraction * self.data.points), section.val_max_points)

    @property
    def training(self) -> int:
        """Points that are trained on."""
        return max(self.data.points - self.held_out, 1)

    @property
    def batch(self) -> int:
        """B: queries of a batch, of all processes together."""
        return min(self.config.train.batch_size, self.training)

    @property
    def own_batch(self) -> int:
        """b: this process's queries of a batch."""
        return self.share(self.batch)

    def share(self, count: int) -> int:
        """One process's share of so many, at most."""
        return ceil(count / self.processes)

    def table_rows(self, tokens: int) -> int:
        """Rows of the encoder's table that so many tokens of text touch.

        n tokens of natural text hold 10 n^0.55 distinct ones (Heaps' law).
        """
        return min(self.encoder.table, tokens, ceil(10 * tokens**0.55))


def resident() -> int:
    """Bytes that this process holds now."""
    return psutil.Process().memory_info().rss
