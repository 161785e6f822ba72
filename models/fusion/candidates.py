"""What members propose for some texts, and what each of them says of all proposals.

opened = members.open(texts, members.names)
candidates = ask(opened, 100, num_labels)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from models.contract import Ranker
from models.fusion.memory import MEMORY, QueryMemory
from models.scores import KnownAlone, Scores
from utils.data.texts import Texts
from utils.fusing.candidates import Candidates, merge


@dataclass(frozen=True)
class Members:
    """What a fusion asks.

    Attributes:
        rankers: by name.
        memory: one more member, of the name MEMORY; None without.
        known: labels that a member knows, by its name, where others know more: a new label has the
            lowest of a text's scores from it, as one that it does not reach.
    """

    rankers: Mapping[str, Ranker]
    memory: QueryMemory | None = None
    known: Mapping[str, int] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """In the order of the fuser's features."""
        return [*self.rankers, *([MEMORY] if self.memory else [])]

    def open(self, texts: Texts, names: Sequence[str]) -> list[Scores]:
        """The scores of some members; those with equal encoders share the texts' embeddings."""
        return [self._open(name, texts) for name in names]

    def _open(self, name: str, texts: Texts) -> Scores:
        if name != MEMORY:
            opened = self.rankers[name].open(texts, given=True)
            return KnownAlone(opened, self.known[name]) if name in self.known else opened
        assert self.memory is not None, "a fuser of a memory that there is not"
        return self.memory.open(texts)


def proposals(opened: Sequence[Scores], k: int) -> list[np.ndarray]:
    """The k best labels of each member [n, k], -1 = no more."""
    return [scores.best(k)[1] for scores in opened]


def score_proposals(
    opened: Sequence[Scores], proposed: Sequence[np.ndarray], num_labels: int
) -> Candidates:
    """All proposals of members [n, k] each, scored by every one of them."""
    labels, ranks = merge(proposed, num_labels)  # [n, w], [n, w, m]
    scores = np.stack([member.of(labels) for member in opened], 2)  # [n, w, m]
    return Candidates(labels, ranks, scores.astype(np.float32), proposed[0].shape[1])


def ask(
    opened: Sequence[Scores],
    k: int,
    num_labels: int,
) -> Candidates:
    """The candidates of members that propose k labels each."""
    return score_proposals(opened, proposals(opened, k), num_labels)
