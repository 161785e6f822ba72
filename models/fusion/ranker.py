"""A fusion that answers: members propose labels, a fuser says how likely each of them is relevant.

scores = FusionRanker.load(config, folder, num_labels, runtime).open(texts)
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from models.contract import Ranker, write_facts
from models.encoders.reader import Reader
from models.fusion.candidates import Members, ask, proposals, score_proposals
from models.fusion.members import check_name, of_data, reader_of
from models.fusion.memory import MEMORY, QueryMemory
from models.loading import read_ranker
from models.scores import MemberView, Reached, Scores
from utils.answering.decider import DECIDER
from utils.config.config import Config, ConfigError, load_config, to_yaml
from utils.data.texts import Texts
from utils.errors import InputError
from utils.files import link_or_copy, write_json, write_text
from utils.fusing.fuser import Fuser
from utils.fusing.fuser_fitting import FittedFusers
from utils.reading.saved import read_facts
from utils.run.model_files import LABEL_IDS, LABELS
from utils.runtime import Runtime
from utils.sparse import contains, topk_csr


class FusionRanker(Ranker):
    """Members and the fuser of what they say.

    Args:
        members: which this model holds.
        fusers: of all members, and for each of them of the others.
        data_hash: of the labels that the fusers know.
    """

    takes = frozenset({"without"})
    at_once = 256  # of each of which trees keep thousands of labels, and the fuser hundreds

    def __init__(
        self,
        config: Config,
        members: Members,
        fusers: FittedFusers,
        data_hash: str,
        folder: Path | None = None,
    ) -> None:
        super().__init__(config, len(fusers.fuser.log_counts), folder)
        self.members = members
        self.fusers = fusers
        self.data_hash = data_hash

    @property
    def active(self) -> Fuser:
        """The fuser of the members that `eval.without` leaves."""
        left_out = list(self.config.eval.without or ())
        if not left_out:
            return self.fusers.fuser
        without = self.fusers.without
        if len(left_out) > 1 or left_out[0] not in without:
            raise ConfigError(
                f"eval.without is {left_out}: expected exactly one of the members, "
                f"{', '.join(without) or 'of which there is only one'}"
            )
        return without[left_out[0]]

    def open(self, texts: Texts, given: bool = False) -> FusionScores:
        fuser = self.active
        opened = self.members.open(texts, fuser.members)
        return FusionScores(opened, fuser, self.config.method.candidates)

    def with_more_labels(self, labels: Texts) -> FusionRanker:
        """Rank new labels by the members that know labels by their texts.

        For the others, and for the memory, a new label is one that they do not reach; for the fuser
        it is one without training points.
        """
        rankers: dict[str, Ranker] = {}
        known: dict[str, int] = {}
        problem = ""
        for name, member in self.members.rankers.items():
            try:
                rankers[name] = member.with_more_labels(labels)
            except InputError as error:
                rankers[name] = member
                known[name] = self.num_labels
                problem = str(error)
        if len(known) == len(rankers):
            raise InputError(f"no member of the fusion can rank new labels: {problem}")
        members = Members(rankers, self.members.memory, known)
        fusers = self.fusers.with_more_labels(len(labels))
        return FusionRanker(self.config, members, fusers, self.data_hash, self.folder)

    def readers(self) -> list[Reader]:
        return [reader for member in self.members.rankers.values() for reader in member.readers()]

    def clusters(self) -> dict[str, sp.csr_matrix]:
        every = {}
        for name, member in self.members.rankers.items():
            for tree, clusters in member.clusters().items():
                every[f"{name}, {tree}"] = clusters
        return every

    @property
    def score_is(self) -> str:
        """A probability, unless rare labels were given weight."""
        if self.active.tail:
            return "probability times a weight that is larger for rare labels"
        return "probability"

    def probabilities(
        self,
        scores: np.ndarray,
        labels: np.ndarray,
        ranked: np.ndarray,
    ) -> np.ndarray:
        """What the fuser says, which was calibrated as it was fitted."""
        probabilities = self.active.probabilities(scores, np.maximum(labels, 0))
        return np.clip(probabilities, 0.0, 1.0)  # a stranger's factors may be anything

    # ---- saving
    def save(self, folder: Path) -> None:
        """Write the fusers, the memory, and copies of the members: no other run is needed."""
        for name, member in self.members.rankers.items():
            assert member.folder is not None, "members are loaded"
            to = folder / "members" / name
            shutil.copytree(
                member.folder,
                to / "model",
                copy_function=link_or_copy,
                ignore=shutil.ignore_patterns(LABELS, LABEL_IDS, DECIDER),  # it has its own
            )
            write_text(to / "config.yaml", to_yaml(member.config))
        self.fusers.fuser.save(folder / "fuser.npz")
        for name, fuser in self.fusers.without.items():
            fuser.save(folder / f"without-{name}.npz")
        if self.members.memory is not None:
            self.members.memory.save(folder / MEMORY)
        write_json(folder / "fusion.json", self.fusers.checked)
        told = {"members": list(self.members.rankers), "data_hash": self.data_hash}
        write_facts(folder, self.config.method.name, self.num_labels, **told)

    @classmethod
    def load(
        cls,
        config: Config,
        folder: Path,
        num_labels: int,
        runtime: Runtime,
    ) -> FusionRanker:
        """Read what `save` wrote: members, memory and fusers."""
        told = read_facts(folder / "method.json", members=list[str], data_hash=str)
        rankers = {}
        for name in told["members"]:
            check_name(name)
            rankers[name] = _load_member(config, folder / "members" / name, num_labels, runtime)
        _share_encoders(rankers.values())
        members = Members(rankers, _load_memory(config, folder / MEMORY, rankers, num_labels))
        fusers = _load_fusers(folder, members.names, num_labels)
        return cls(config, members, fusers, told["data_hash"], folder)


class FusionScores(Scores):
    """Fused scores of what members propose for some texts.

    Args:
        opened: the members, in the order of the fuser's features.
        fuser: of these members.
        proposed: labels that each member proposes, however many are asked for: the fuser was fitted
            on so many.
    """

    def __init__(
        self,
        opened: Sequence[Scores],
        fuser: Fuser,
        proposed: int,
    ) -> None:
        self._opened = opened
        self._fuser = fuser
        self._num_labels = len(fuser.log_counts)
        self._proposed = min(proposed, self._num_labels)

    @cached_property
    def _fused(self) -> Reached:
        """Scores of all candidates."""
        candidates = ask(self._opened, self._proposed, self._num_labels)
        candidates.check_finite(self._fuser.members, "these points")
        scores = self._fuser(candidates)  # [n, w]
        return Reached(topk_csr(scores, candidates.labels, self._num_labels), negative=True)

    def best(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        return self._fused.best(k)

    def of(self, labels: np.ndarray) -> np.ndarray:
        return self._fused.of(labels)

    def among(self, labels: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Of labels that no member proposes none is an answer."""
        return self._fused.among(labels, k)

    def views(
        self,
        labels: np.ndarray,
        k: int,
        removed: sp.csr_matrix,
    ) -> list[MemberView]:
        """Say of each member its own best labels, and its share of the scores of given ones."""
        most_removed = int(np.diff(removed.indptr).max(initial=0))
        wanted = min(k + most_removed, self._num_labels)
        best = proposals(self._opened, max(self._proposed, wanted))
        proposed = [ids[:, : self._proposed] for ids in best]
        candidates = score_proposals(self._opened, proposed, self._num_labels)
        shares = self._fuser.shares(candidates)  # [n, w, m]
        # candidate w of text i is its given label c
        place = candidates.labels[:, None, :] == labels[:, :, None]  # [n, c, w]
        place &= (labels >= 0)[:, :, None]
        views = []
        for number, name in enumerate(self._fuser.members):
            ids = _first_left(best[number][:, :wanted], k, removed)  # [n, k]
            contributions = np.einsum("ncw,nw->nc", place, shares[:, :, number])
            views.append(MemberView(name, ids, contributions.astype(np.float32)))
        return views


def _first_left(
    ids: np.ndarray,
    k: int,
    removed: sp.csr_matrix,
) -> np.ndarray:
    """The first k labels of each text [n, k] that are no removed pairs, -1 = no more.

    Args:
        ids: of the labels [n, wanted].
    """
    is_removed = contains(removed, np.arange(len(ids))[:, None], ids)
    left = np.where(is_removed, -1, ids)
    order = np.argsort(left < 0, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(left, order, 1)


def _share_encoders(rankers: Iterable[Ranker]) -> None:
    """Let members with equal encoders hold one, as classifiers do that stand on another member."""
    readers: dict[bytes, Reader] = {}
    for ranker in rankers:
        if ranker.reader is not None and ranker.reader.key is not None:
            ranker.reader = readers.setdefault(ranker.reader.key, ranker.reader)


def _load_member(
    config: Config,
    folder: Path,
    num_labels: int,
    runtime: Runtime,
) -> Ranker:
    """A member, as the fusion searches; a stranger's config is not trusted."""
    trusted: dict[str, Any] = {"encoder": {"trust_remote_code": config.encoder.trust_remote_code}}
    saved = load_config(folder / "config.yaml", trusted)
    member = read_ranker(of_data(saved, config), folder, runtime)
    if member.num_labels != num_labels:
        raise InputError(f"{folder}: a member of {member.num_labels} labels, expected {num_labels}")
    return member


def _load_memory(
    config: Config, folder: Path, rankers: Mapping[str, Ranker], num_labels: int
) -> QueryMemory | None:
    """The memory in the embedding space of one of the members; None of a fusion without."""
    options = config.method
    if not options.memory:
        return None
    reader = reader_of(rankers, options.memory)
    memory = QueryMemory.load(folder, reader, options.memory_neighbours, options.memory_tau)
    if memory.relevance.shape[1] != num_labels:
        raise InputError(
            f"{folder}: queries of {memory.relevance.shape[1]} labels, expected {num_labels}"
        )
    return memory


def _load_fusers(
    folder: Path,
    names: Sequence[str],
    num_labels: int,
) -> FittedFusers:
    """The fusers of members of some names."""
    without = {}
    for name in names if len(names) > 1 else ():
        others = [other for other in names if other != name]
        without[name] = _load_fuser(folder / f"without-{name}.npz", others, num_labels)
    fuser = _load_fuser(folder / "fuser.npz", list(names), num_labels)
    return FittedFusers(fuser, without, read_facts(folder / "fusion.json"))


def _load_fuser(
    path: Path,
    names: list[str],
    num_labels: int,
) -> Fuser:
    fuser = Fuser.load(path)
    if list(fuser.members) != names or fuser.log_counts.shape != (num_labels,):
        raise InputError(
            f"{path}: expected members {', '.join(names)} and {num_labels} labels, got "
            f"{', '.join(fuser.members)} and {len(fuser.log_counts)}"
        )
    return fuser
