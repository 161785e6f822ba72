"""Fusion: several trained models propose labels and score each other's proposals; a fuser that is
fitted on validation points says how likely each candidate is relevant.

Members are runs of any method on the same data set and validation split: a dual encoder knows the
tail and generalises from label texts, classifiers and linear trees know the head and exact words. A
memory of the training queries (nearest neighbours in a member's embedding space) may be one more.
The model holds copies of its members and needs no other run.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import scipy.sparse as sp
import torch
from accelerate import Accelerator
from torch import Tensor

from models.fusion.members import check_member, check_name, equal_encoders, of_data, proposals
from models.fusion.memory import MEMORY, QueryMemory
from models.loading import load_method
from models.method import Method, write_method
from models.scores import MemberView, Scores
from utils import distributed
from utils.config.config import Config, ConfigError, MethodConfig, load_config, option, to_yaml
from utils.config.sections import LARGEST, MANY_LABELS, SMALLEST
from utils.data.dataset import Dataset, Split
from utils.data.held_out import held_out_points
from utils.data.sizes import DataSizes
from utils.files import link_or_copy, write_json, write_text
from utils.fusing.candidates import Candidates, joined, merge
from utils.fusing.fuser import Fuser, SeenLabels
from utils.fusing.fuser_fitting import FuserChoice, fit_fusers
from utils.fusing.fuser_models import KINDS, TreeLimits
from utils.fusing.validation import Validation
from utils.reading.saved import read_facts
from utils.run.folder import find_run
from utils.run.stages import Runs
from utils.sparse import contains

log = logging.getLogger(__name__)
POINTS_AT_ONCE = 2048  # whose candidates are held at a time


@dataclass(frozen=True)
class FusionConfig(MethodConfig):
    has_encoder: ClassVar[bool] = False
    members: Mapping[str, str] | None = option(
        None,
        "name: run folder, config file (trained when missing), or `stage:NAME`, an earlier stage "
        "of this config",
    )
    candidates: int = option(
        100, "labels that each member proposes for a query", ge=1, le=MANY_LABELS
    )
    fuser: Literal["auto", "boosted", "linear"] = option(
        "auto",
        "boosted trees or a logistic regression; auto = the better one by cross-fitting on "
        "validation points",
    )
    target: Literal["nDCG@5", "PSP@5"] = option(
        "nDCG@5",
        "what the fuser is chosen for, and the power of the inverse propensity that "
        "probabilities are multiplied with; PSP@5: for the tail",
    )
    trees: int = option(100, "boosted: number of trees", ge=1, le=10**4)
    leaves: int = option(8, "boosted: leaves of a tree", ge=2, le=10**5)
    min_leaf: int = option(50, "boosted: fewest candidates of a leaf", ge=1, le=10**9)
    memory: str | None = option(
        None,
        "member in whose embedding space the training queries are remembered; null = no memory",
    )
    memory_neighbours: int = option(
        50, "training queries that the memory looks at", ge=1, le=MANY_LABELS
    )
    memory_tau: float = option(
        0.05,
        "memory: temperature of a neighbour's weight exp((cos - 1) / tau)",
        ge=SMALLEST,
        le=LARGEST,
    )


class Fusion(Method):
    """Attributes: members, methods by name; memory, over the member `method.memory`; fuser;
    without, for each member the fuser of the others."""

    Options = FusionConfig

    def __init__(
        self, config: Config, num_labels: int, data: Dataset | None, members: Mapping[str, Method]
    ) -> None:
        super().__init__(config, num_labels, data)
        self.members = torch.nn.ModuleDict(members).requires_grad_(False).eval()
        self.sources: dict[str, Path] = {}
        self.memory: QueryMemory | None = None
        self.fuser: Fuser | None = None
        self.without: dict[str, Fuser] = {}
        self.checked: dict[str, Any] = {}
        # of the labels that the fusers know
        self.data_hash = data.relevance_hash if data else ""

    @classmethod
    def tokenizer_source(cls, config: Config) -> None:
        return None  # each member has its own

    @property
    def names(self) -> list[str]:
        """Members in the order of the fuser's features."""
        return [*self.members, *([MEMORY] if self.config.method.memory else [])]

    @property
    def epochs(self) -> int:
        return 0

    @classmethod
    def group_names(cls, config: Config) -> frozenset[str]:
        return frozenset()

    def parameter_groups(self) -> list[dict[str, Any]]:
        return []

    @classmethod
    def check(cls, config: Config, sizes: DataSizes, runs: Runs) -> None:
        check_members(config)
        if sizes.validation < 2 and not config.run.start_from:
            raise ConfigError(
                "method fusion is fitted on validation points: expected at least 2 of them, "
                f"data.val_fraction {config.data.val_fraction} gives {sizes.validation}"
            )
        members = {name: runs.config(source) for name, source in config.method.members.items()}
        for name, member in members.items():
            if isinstance(member.method, FusionConfig):
                raise ConfigError(
                    f"method.members: {name} ({config.method.members[name]}) is a fusion itself; "
                    "name its members instead"
                )
            check_validation(name, member, config, sizes)
        memory = config.method.memory
        if memory and not members[memory].method.has_encoder:
            raise ConfigError(
                f"method.memory is '{memory}', a {members[memory].method.name} run, which has no "
                "encoder; name a member that embeds texts"
            )
        super().check(config, sizes, runs)

    @classmethod
    def check_start(cls, config: Config, before: Config) -> None:
        """Only the fusers of a fusion of members of the same names can be taken."""
        theirs = (
            _of_members(before)
            if isinstance(before.method, FusionConfig)
            else f"a {before.method.name} run"
        )
        if theirs != _of_members(config):
            raise ConfigError(
                f"run.start_from: expected {_of_members(config)}, whose fuser is taken, got "
                f"{theirs}; `start_from: null` fits a new fuser"
            )

    @classmethod
    def build(cls, config: Config, data: Dataset) -> Fusion:
        members, sources = {}, {}
        for name, source in config.method.members.items():
            folder, own = find_run(source)
            check_member(name, folder, data)
            members[name], sources[name] = load_method(of_data(own, config), folder), folder
        method = cls(config, data.num_labels, data, members)
        method.sources = sources
        return method

    def start_from(self, other: Method) -> None:
        """Take the fusers of another fusion of members of the same names: these here were trained
        again, on all training points, and nothing is left that a fuser could be fitted on."""

        def described(fusion: Fusion) -> str:
            memory = fusion.config.method.memory
            return (
                f"a fusion of {', '.join(fusion.names)}{f' over {memory}' if memory else ''} on "
                f"data {fusion.data_hash}"
            )

        ours = described(self)
        theirs = (
            described(other) if isinstance(other, Fusion) else f"a {other.config.method.name} run"
        )
        if ours != theirs:
            raise ConfigError(
                f"run.start_from: expected {ours}, whose fuser is taken, got {theirs}; "
                "`start_from: null` fits a new fuser"
            )
        self.fuser = other.fuser
        self.without = other.without
        self.checked = other.checked

    # ---- members
    @cached_property
    def _leaders(self) -> dict[str, str]:
        """For each member that ranks by embeddings the first one with an equal encoder: texts are
        encoded once."""
        leaders: dict[str, str] = {}
        for name, member in self.members.items():
            if member.text_encoder is None or type(member).open_points is not Method.open_points:
                continue
            same = (
                other
                for other in dict.fromkeys(leaders.values())
                if equal_encoders(self.members[other], member)
            )
            leaders[name] = next(same, name)
        return leaders

    def _open(
        self,
        names: Sequence[str],
        embed: Callable[[Method], Tensor],
        open_other: Callable[[Method], Scores],
    ) -> list[Scores]:
        """The scores of members, their encoders called by `embed`, the other members opened by
        `open_other`."""
        embeddings: dict[str, Tensor] = {}

        def embedded(name: str) -> Tensor:
            leader = self._leaders.get(name, name)
            if leader not in embeddings:
                embeddings[leader] = embed(self.members[leader])
            return embeddings[leader]

        def opened(name: str) -> Scores:
            if name == MEMORY:
                return self.memory.open(embedded(self.config.method.memory))
            if name in self._leaders:
                return self.members[name].open_embeddings(embedded(name))
            return open_other(self.members[name])

        return [opened(name) for name in names]

    def _open_points(
        self,
        split: Split,
        points: np.ndarray,
        names: Sequence[str],
        accelerator: Accelerator,
    ) -> list[Scores]:
        return self._open(
            names,
            lambda member: member.embed_points(split, points, accelerator),
            lambda member: member.open_points(split, points, accelerator),
        )

    def _candidates(self, opened: Sequence[Scores]) -> Candidates:
        """As many proposals as the fuser was fitted on, however many labels are asked for."""
        return self._scored(
            opened, proposals(opened, min(self.config.method.candidates, self.num_labels))
        )

    def _scored(self, opened: Sequence[Scores], found: Sequence[np.ndarray]) -> Candidates:
        labels, ranks = merge(found, self.num_labels)
        scores = np.stack([member.of(labels) for member in opened], 2).astype(np.float32)
        return Candidates(labels, ranks, scores, found[0].shape[1])

    # ---- fitting
    @torch.no_grad()
    def prepare(self, run_folder: Path, accelerator: Accelerator) -> None:
        """Remember the training queries and fit the fusers; the main process does it."""
        settings = self.config.method
        if settings.memory:
            split = self.data.splits["trn"]
            own = distributed.share(len(self.data.splits["trn"]))
            with distributed.main_first():  # tokens are made on first use
                keys = self.members[settings.memory].embed_points(
                    split, np.arange(own.start, own.stop), accelerator
                )
            keys = torch.nn.functional.normalize(distributed.gather_rows(keys, len(split)), dim=1)
            self.memory = QueryMemory(
                keys.cpu().numpy(), split.relevance, settings.memory_neighbours, settings.memory_tau
            )
        seen = SeenLabels.of_counts(self.data.seen_counts, self.data.seen_weights())
        if distributed.is_main():
            if self.fuser is None:
                self._fit(seen, accelerator)
            else:
                self.fuser = self.fuser.of_points(seen)
                self.without = {name: fuser.of_points(seen) for name, fuser in self.without.items()}
        self.fuser, self.without = distributed.broadcast((self.fuser, self.without))

    def _fit(self, seen: SeenLabels, accelerator: Accelerator) -> None:
        split = self.data.splits["val"]
        names = self.names
        parts = [
            self._candidates(self._open_points(split, points, names, accelerator))
            for points in np.array_split(np.arange(len(split)), -(-len(split) // POINTS_AT_ONCE))
        ]
        found = joined(parts).without_pairs(split.filters)
        found.check_finite(names, "validation points")
        settings = self.config.method
        choice = FuserChoice(
            kinds=KINDS if settings.fuser == "auto" else (settings.fuser,),
            limits=TreeLimits(settings.trees, settings.leaves, settings.min_leaf),
            target=f"{settings.target.partition('@')[0]}@{min(5, self.num_labels)}",
        )
        validation = Validation(split.relevance, self.data.label_weights())
        fitted = fit_fusers(found, names, validation, seen, choice)
        self.fuser = fitted.fuser
        self.without = fitted.without
        self.checked = fitted.checked

    # ---- scoring
    @property
    def active(self) -> Fuser:
        """The fuser of the members that `eval.without` leaves."""
        left_out = list(self.config.eval.without or ())
        if not left_out:
            return self.fuser
        if len(left_out) > 1 or left_out[0] not in self.without:
            raise ConfigError(
                f"eval.without is {left_out}: expected exactly one of the members, "
                f"{', '.join(self.without) or 'of which there is only one'}"
            )
        return self.without[left_out[0]]

    def _rank(
        self, opened: Sequence[Scores], fuser: Fuser, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        found = self._candidates(opened)
        found.check_finite(fuser.members, "these points")
        scores = fuser(found)
        values, ids = (
            np.full((len(scores), k), -np.inf, np.float32),
            np.full((len(scores), k), -1, np.int64),
        )
        width = min(k, scores.shape[1])
        order = np.lexsort((np.where(found.labels < 0, self.num_labels, found.labels), -scores))[
            :, :width
        ]
        values[:, :width], ids[:, :width] = (
            np.take_along_axis(a, order, 1) for a in (scores, found.labels)
        )
        return values, ids

    @torch.no_grad()
    def score_points(
        self,
        split: Split,
        points: np.ndarray,
        k: int,
        accelerator: Accelerator,
    ) -> tuple[np.ndarray, np.ndarray]:
        fuser = self.active
        parts = [
            self._rank(self._open_points(split, some, fuser.members, accelerator), fuser, k)
            for some in np.array_split(points, max(-(-len(points) // POINTS_AT_ONCE), 1))
            if len(some)
        ]
        if not parts:
            return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))

    @torch.no_grad()
    def score_texts(
        self, texts: Sequence[str], k: int, accelerator: Accelerator
    ) -> tuple[np.ndarray, np.ndarray]:
        if not len(texts):
            return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        fuser = self.active
        return self._rank(
            self._open(
                fuser.members,
                lambda member: member.embed_texts(texts, accelerator),
                lambda member: member.open_texts(texts, accelerator),
            ),
            fuser,
            k,
        )

    def probabilities(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return self.active.probabilities(scores, labels)

    @torch.no_grad()
    def explain(
        self,
        split: Split,
        points: np.ndarray,
        labels: np.ndarray,
        k: int,
        accelerator: Accelerator,
    ) -> list[MemberView]:
        fuser = self.active
        views = []
        opened = self._open_points(split, points, fuser.members, accelerator)
        removed = split.filters[points]
        own = min(self.config.method.candidates, self.num_labels)
        wanted = min(k + int(np.diff(removed.indptr).max(initial=0)), self.num_labels)
        best = [ids[:, : max(own, wanted)] for ids in proposals(opened, max(own, wanted))]
        candidates = self._scored(opened, [ids[:, :own] for ids in best])
        shares = fuser.shares(candidates)
        # [n, given, w]
        place = (candidates.labels[:, None, :] == labels[:, :, None]) & (labels >= 0)[:, :, None]
        for m, name in enumerate(fuser.members):
            ids = best[m][:, :wanted].copy()
            ids[contains(removed, np.arange(len(ids))[:, None], ids)] = -1
            order = np.argsort(ids < 0, axis=1, kind="stable")[:, :k]
            views.append(
                MemberView(
                    name,
                    np.take_along_axis(ids, order, 1),
                    np.einsum("ngw,nw->ng", place, shares[:, :, m]).astype(np.float32),
                )
            )
        return views

    def label_clusters(self) -> dict[str, sp.csr_matrix]:
        return {
            f"{name}, {own}": clusters
            for name, member in self.members.items()
            for own, clusters in member.label_clusters().items()
        }

    # ---- saving
    def save(self, folder: Path, accelerator: Accelerator) -> None:
        if not distributed.is_main():
            return
        for name, source in self.sources.items():
            to = folder / "members" / name
            shutil.copytree(source / "model", to / "model", copy_function=link_or_copy)
            write_text(to / "config.yaml", to_yaml(self.members[name].config))
        self.fuser.save(folder / "fuser.npz")
        for name, fuser in self.without.items():
            fuser.save(folder / f"without-{name}.npz")
        if self.memory is not None:
            self.memory.save(folder / MEMORY)
        write_json(folder / "fusion.json", self.checked)
        write_method(
            folder,
            self.config.method.name,
            self.num_labels,
            members=list(self.members),
            data_hash=self.data_hash,
        )

    @classmethod
    def load(cls, config: Config, folder: Path, num_labels: int) -> Fusion:
        members: dict[str, Method] = {}
        told = read_facts(folder / "method.json", members=list[str], data_hash=str)
        # a stranger's config is not
        trusted = {"encoder": {"trust_remote_code": config.encoder.trust_remote_code}}
        for name in told["members"]:
            check_name(name)
            own = load_config(folder / "members" / name / "config.yaml", trusted)
            members[name] = load_method(of_data(own, config), folder / "members" / name)
            if members[name].num_labels != num_labels:
                raise ValueError(
                    f"{folder}: member {name} has {members[name].num_labels} labels, expected "
                    f"{num_labels}"
                )
        method = cls(config, num_labels, None, members)
        method.data_hash = told["data_hash"]
        method.checked = read_facts(folder / "fusion.json")
        method.fuser = _load_fuser(folder / "fuser.npz", method.names, num_labels)
        if len(method.names) > 1:
            method.without = {
                name: _load_fuser(
                    folder / f"without-{name}.npz",
                    [n for n in method.names if n != name],
                    num_labels,
                )
                for name in method.names
            }
        if config.method.memory:
            method.memory = QueryMemory.load(
                folder / MEMORY, config.method.memory_neighbours, config.method.memory_tau
            )
        return method


def _load_fuser(path: Path, names: list[str], num_labels: int) -> Fuser:
    fuser = Fuser.load(path)
    if list(fuser.members) != names or fuser.log_counts.shape != (num_labels,):
        raise ValueError(
            f"{path}: expected members {', '.join(names)} and {num_labels} labels, got "
            f"{', '.join(fuser.members)} and {len(fuser.log_counts)}"
        )
    return fuser


def _of_members(config: Config) -> str:
    memory = config.method.memory
    names = [*(config.method.members or ()), *([f"{MEMORY} over {memory}"] if memory else [])]
    return f"a fusion of {', '.join(names)}"


def check_validation(name: str, member: Config, config: Config, sizes: DataSizes) -> None:
    """ConfigError where a member leaves other points for validation than the fusion does."""
    theirs = member.data
    ours = config.data
    kept, expected = (
        held_out_points(sizes.training + sizes.validation, data) for data in (theirs, ours)
    )
    if theirs.name != ours.name:
        raise ConfigError(
            f"method.members: {name}: a run on {theirs.name}, this one is on {ours.name}"
        )
    if kept != expected or (kept and theirs.val_group_size != ours.val_group_size):
        raise ConfigError(
            f"method.members: {name}: another validation split than data.val_fraction "
            f"{ours.val_fraction}, data.val_max_points {ours.val_max_points} and "
            f"data.val_group_size {ours.val_group_size} give, so that its points may have been "
            "trained on"
        )


def check_members(config: Config) -> None:
    """ConfigError for settings that no data is needed to refute."""
    settings = config.method
    if not settings.members:
        raise ConfigError(
            "method.members is empty: name the runs that are to be fused, such as "
            "{encoder: stage:encoder, tree: Results/…/overlap}"
        )
    for name in settings.members:
        check_name(name)
    if config.eval.index != "exact":
        raise ConfigError(
            f"eval.index is '{config.eval.index}': a fusion asks its members for exact scores; it "
            "needs eval.index: exact"
        )
    if settings.memory is not None and settings.memory not in settings.members:
        raise ConfigError(
            f"method.memory is '{settings.memory}', expected one of the members, "
            f"{', '.join(settings.members)}"
        )
