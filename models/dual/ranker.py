"""A dual encoder that answers: labels are ranked by inner products of embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.contract import Ranker, Vectors, write_facts
from models.dual.auxiliary import AuxiliaryVectors
from models.encoders.building import load_encoder
from models.encoders.reader import Reader, embed_together
from models.scores import Index, InnerProducts
from utils.config.config import Config
from utils.data.texts import Texts
from utils.reading.saved import check_ids, map_rows, read_tensors
from utils.runtime import Runtime
from utils.search import build_index


class DualRanker(Ranker):
    """Ranks labels by E(x) . v_l.

    Args:
        reader: of the queries.
        label_embeddings: v [L, D], perhaps mapped from disk.
        index_name: of the search, exact or hnsw. In training it is exact: neither the choice of the
            checkpoint nor negatives depend on `eval.index`.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"index"})

    def __init__(
        self,
        config: Config,
        reader: Reader,
        label_embeddings: Tensor | np.ndarray,
        index_name: str = "exact",
        folder: Path | None = None,
    ) -> None:
        super().__init__(config, len(label_embeddings), folder)
        self.reader: Reader = reader
        self.label_embeddings = label_embeddings
        self.index: Index = build_index(index_name, label_embeddings, settings=config.eval)

    @property
    def score_is(self) -> str:
        normalized = self.reader.encoder.config.normalize
        return "cosine of text and label" if normalized else "inner product of text and label"

    def open(self, texts: Texts, given: bool = False) -> InnerProducts:
        return InnerProducts(self.queries(texts), self.index, self.config.eval.batch_size)

    def vectors(self) -> dict[str, Vectors]:
        return {"embeddings": Vectors(self.label_embeddings)}

    def with_labels(self, labels: Texts) -> DualRanker:
        vectors = self.represent_new(embed_labels(self.reader, self.config, labels))
        return type(self)(
            self.config, self.reader, vectors, self.config.eval.index, folder=self.folder
        )

    def with_more_labels(self, labels: Texts) -> DualRanker:
        """Rank by the embeddings of the new labels' texts beside those of the known ones."""
        new = self.represent_new(embed_labels(self.reader, self.config, labels))
        known = torch.as_tensor(self.label_embeddings).to(new.device)
        return type(self)(
            self.config,
            self.reader,
            torch.cat([known, new]),
            self.config.eval.index,
            folder=self.folder,
        )

    def represent_new(self, embeddings: Tensor) -> Tensor:
        """Embeddings of label texts that training never saw [k, D] -> v [k, D]."""
        return embeddings

    # ---- files
    def save(self, folder: Path) -> None:
        self.reader.encoder.save(folder)
        rows = torch.as_tensor(self.label_embeddings).cpu()
        np.save(folder / "label_embeddings.npy", np.asarray(rows))
        write_facts(folder, self.config.method.name, self.num_labels)

    @classmethod
    def load(
        cls,
        config: Config,
        folder: Path,
        num_labels: int,
        runtime: Runtime,
    ) -> DualRanker:
        reader, rows = _load_parts(config, folder, num_labels, runtime)
        return cls(config, reader, rows, config.eval.index, folder)


class DexaRanker(DualRanker):
    """Whose label embeddings have auxiliary vectors (DEXA).

    Args:
        auxiliary: the vectors; None without.
        centroids: of the texts' embeddings of the labels that share each vector [K, D], by which
            labels never seen get theirs.
    """

    def __init__(
        self,
        config: Config,
        reader: Reader,
        label_embeddings: Tensor | np.ndarray,
        index_name: str = "exact",
        folder: Path | None = None,
        *,
        auxiliary: AuxiliaryVectors | None = None,
        centroids: Tensor | None = None,
    ) -> None:
        super().__init__(config, reader, label_embeddings, index_name, folder)
        self.auxiliary = auxiliary
        self.centroids = centroids

    def represent_new(self, embeddings: Tensor) -> Tensor:
        """Add the vector of the nearest cluster of known labels."""
        if self.auxiliary is None or self.centroids is None:
            return embeddings
        centroids = self.centroids.to(embeddings.device)
        normalize = bool(self.reader.encoder.config.normalize)
        return self.auxiliary.nearest(embeddings, centroids, normalize)

    def save(self, folder: Path) -> None:
        """Write auxiliary.safetensors too, where there are vectors."""
        super().save(folder)
        if self.auxiliary is None or self.centroids is None:
            return
        tensors = {
            name: value.detach().cpu().contiguous()
            for name, value in self.auxiliary.state_dict().items()
        }
        save_file({**tensors, "centroids": self.centroids}, folder / "auxiliary.safetensors")

    @classmethod
    def load(
        cls,
        config: Config,
        folder: Path,
        num_labels: int,
        runtime: Runtime,
    ) -> DexaRanker:
        """Read the vectors too, where the config has some."""
        reader, rows = _load_parts(config, folder, num_labels, runtime)
        index_name = config.eval.index
        if not config.method.num_vectors:
            return cls(config, reader, rows, index_name, folder)
        auxiliary, centroids = _load_vectors(folder, num_labels, reader.dim)
        return cls(
            config,
            reader,
            rows,
            index_name,
            folder,
            auxiliary=auxiliary.to(runtime.device),
            centroids=centroids,
        )


def embed_labels(
    reader: Reader,
    config: Config,
    labels: Texts,
) -> Tensor:
    """Embeddings of label texts [k, D] on every process; a collective."""
    length = config.data.label_max_len or config.data.max_len
    tokens, rows = labels.tokens(reader.encoder.label_tokenizer(length))
    return embed_together(reader, tokens, rows, "embed labels")


def _load_parts(
    config: Config, folder: Path, num_labels: int, runtime: Runtime
) -> tuple[Reader, np.ndarray]:
    """Reader and label embeddings [L, D] of a saved model."""
    encoder = load_encoder(config.encoder, folder)
    rows = map_rows(folder / "label_embeddings.npy", (num_labels, encoder.dim))
    return Reader.frozen(encoder, config, runtime), rows


def _load_vectors(
    folder: Path,
    num_labels: int,
    dim: int,
) -> tuple[AuxiliaryVectors, Tensor]:
    """Auxiliary vectors and centroids [K, D] of a saved model."""
    path = folder / "auxiliary.safetensors"
    saved = read_tensors(
        path,
        {"table": (None, dim), "centroids": (None, dim), "clusters": (num_labels,)},
        whole=frozenset({"clusters"}),
    )
    check_ids(saved["clusters"], len(saved["table"]), f"{path}: clusters")
    centroids = saved.pop("centroids")
    auxiliary = AuxiliaryVectors(len(saved["table"]), dim, num_labels, "zeros")
    auxiliary.load_state_dict(saved)
    return auxiliary, centroids
