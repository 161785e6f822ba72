"""A linear classifier over a text encoder that answers: score(x, l) = E(x) . w_l / tau + b_l."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import Tensor

from models.classifiers.label_rows import ClusterRows, DirectionRows, LabelRows
from models.contract import Ranker, Vectors, write_facts
from models.encoders.building import load_encoder
from models.encoders.reader import Reader
from models.scores import Index, InnerProducts
from utils.config.config import Config
from utils.data.texts import Texts
from utils.runtime import Runtime
from utils.search import build_index


class LinearRanker(Ranker):
    """Ranks by a row a label.

    Args:
        reader: of the queries.
        rows: of the labels; in training they may be the Learner's own.
        folder: that it was loaded from; None in training, where search is always exact.
    """

    Rows: ClassVar[type[LabelRows]] = LabelRows
    takes: ClassVar[frozenset[str]] = frozenset({"index"})

    def __init__(
        self, config: Config, reader: Reader, rows: LabelRows, folder: Path | None = None
    ) -> None:
        super().__init__(config, rows.num_labels, folder)
        self.reader: Reader = reader
        self.rows = rows
        self.index: Index = make_index(
            config, rows, "exact" if folder is None else config.eval.index
        )

    @property
    def score_is(self) -> str:
        return "inner product of text and label's row over method.tau, plus the label's bias"

    def open(self, texts: Texts, given: bool = False) -> InnerProducts:
        return InnerProducts(self.queries(texts), self.index, self.config.eval.batch_size)

    def queries(self, texts: Texts) -> Tensor:
        return super().queries(texts) / self.config.method.tau

    def vectors(self) -> dict[str, Vectors]:
        return {"classifier": Vectors(*self.rows.expanded(), tau=self.config.method.tau)}

    # ---- files
    def save(self, folder: Path) -> None:
        self.reader.encoder.save(folder)
        self.rows.save(folder)
        write_facts(folder, self.config.method.name, self.num_labels)

    @classmethod
    def load(
        cls,
        config: Config,
        folder: Path,
        num_labels: int,
        runtime: Runtime,
    ) -> LinearRanker:
        encoder = load_encoder(config.encoder, folder)
        rows = cls.Rows.load(config, folder, num_labels, encoder.dim)
        return cls(config, Reader.frozen(encoder, config, runtime), rows, folder)


class SurrogateRanker(LinearRanker):
    """Ranks by the rows of the labels' clusters."""

    Rows = ClusterRows
    rows: ClusterRows


class XcRanker(LinearRanker):
    """Ranks by the directions of rows; keeps the label vectors that they started from."""

    Rows = DirectionRows
    rows: DirectionRows

    def vectors(self) -> dict[str, Vectors]:
        return {**super().vectors(), "embeddings": Vectors(self.rows.embeddings)}


def make_index(
    config: Config,
    rows: LabelRows,
    name: str,
) -> Index:
    """A search over all labels; an approximate one copies their rows."""
    if name == "exact":
        return rows.exact_index(config.eval.label_block)
    return build_index(name, *rows.expanded(), settings=config.eval)
