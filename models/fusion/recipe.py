"""Fusion: trained models propose labels, score each other's proposals, and a fuser weighs them.

The fuser is fitted on validation points and says how likely each candidate is relevant.

Members are runs of any method on the same data set and validation split: a dual encoder knows the
tail and generalises from label texts, classifiers and linear trees know the head and exact words. A
memory of the training queries (nearest neighbours in a member's embedding space) may be one more.
The model holds copies of its members and needs no other run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from torch.nn.functional import normalize

from models.contract import Ranker, Solver, Start
from models.encoders.reader import embed_all
from models.evaluation import make_tokens
from models.fusion.candidates import Members, ask
from models.fusion.members import (
    check_member,
    check_members,
    check_settings,
    of_data,
    reader_of,
)
from models.fusion.memory import MEMORY, QueryMemory
from models.fusion.options import FusionOptions
from models.fusion.ranker import FusionRanker
from models.loading import load_ranker
from utils import distributed
from utils.answering.decider import Decider
from utils.config.config import Config, ConfigError
from utils.data.dataset import Dataset
from utils.data.sizes import DataSizes
from utils.fusing.candidates import Candidates, joined
from utils.fusing.fuser import SeenLabels
from utils.fusing.fuser_fitting import FittedFusers, FuserChoice, fit_fusers
from utils.fusing.fuser_models import KINDS, TreeLimits
from utils.fusing.validation import Validation
from utils.run.finding import find_run
from utils.run.stages import Runs
from utils.runtime import Runtime, progress

FITTED_AT_ONCE = 2048  # validation points whose candidates are asked for together


class Fusion(Solver):
    """Remembers the training queries and fits the fusers on the validation points."""

    Options = FusionOptions
    Answers = FusionRanker

    def __init__(
        self, config: Config, data: Dataset, start: Start | None, runtime: Runtime
    ) -> None:
        super().__init__(config, data, start, runtime)
        rankers = {}
        for name, source in config.method.members.items():
            folder, of_run = find_run(source)
            check_member(name, folder, data)
            rankers[name] = load_ranker(of_data(of_run, config), folder, runtime)
        self.members = Members(rankers)
        self.fusers: FittedFusers | None = None
        self._decider: Decider | None = None
        if start is not None:
            before = start()
            self.fusers = self._fusers_of(before)
            self._decider = before.decider

    @classmethod
    def check(
        cls,
        config: Config,
        sizes: DataSizes,
        runs: Runs,
    ) -> None:
        """Refuse members that do not go together, or too few validation points for a fuser."""
        check_settings(config)
        if sizes.validation < 2 and not config.run.start_from:
            raise ConfigError(
                "method fusion is fitted on validation points: expected at least 2 of them, "
                f"data.val_fraction {config.data.val_fraction} gives {sizes.validation}"
            )
        check_members(config, sizes, runs)
        super().check(config, sizes, runs)
        if config.run.start_from:
            before = runs.start(config).method.members or {}
            fitted_on = {
                name: runs.config(source).method.name
                for name, source in before.items()
                if source in runs
            }
            ours = config.method.members.items()
            _check_methods(
                {name: runs.config(source).method.name for name, source in ours}, fitted_on
            )

    @classmethod
    def check_start(cls, config: Config, before: Config) -> None:
        """Only the fusers of a fusion of members of the same names can be taken."""
        theirs = f"a {before.method.name} run"
        if isinstance(before.method, FusionOptions):
            theirs = described(before)
        _check_same(described(config), theirs)

    def _fusers_of(self, start: Ranker) -> FittedFusers:
        """Take the fusers of another fusion of members of the same names.

        These here were trained again, on all training points, and nothing is left that a fuser
        could be fitted on.
        """
        ours = f"{described(self.config)} on data {self.data.relevance_hash}"
        theirs = f"a {start.config.method.name} run"
        if isinstance(start, FusionRanker):
            theirs = f"{described(start.config)} on data {start.data_hash}"
        _check_same(ours, theirs)
        assert isinstance(start, FusionRanker), "nothing else is described so"
        _check_methods(_methods(self.members), _methods(start.members))
        return start.fusers

    def fit(self, folder: Path) -> None:
        """Remember the training queries; fit the fusers, or tell those taken what was seen."""
        self.members = Members(self.members.rankers, self._remembered())
        seen = SeenLabels.of_counts(self.data.seen_counts, self.data.seen_weights())
        if self.fusers is not None:
            self.fusers = self.fusers.of_points(seen)
        else:
            fitted = self._fitted(seen) if distributed.is_main() else None
            self.fusers = distributed.broadcast(fitted)

    def _remembered(self) -> QueryMemory | None:
        """The training queries, embedded by the member `method.memory`; a collective."""
        options = self.config.method
        if not options.memory:
            return None
        rankers = self.members.rankers
        reader = reader_of(rankers, options.memory)
        split = self.data.splits["trn"]
        make_tokens(rankers[options.memory], split.texts)
        keys = normalize(embed_all(reader, split.texts), dim=1)  # [N, D]
        return QueryMemory(
            keys.cpu().numpy(),
            split.relevance,
            reader,
            options.memory_neighbours,
            options.memory_tau,
        )

    def _candidates(self) -> Candidates:
        """What the members say of the validation points, filter pairs removed."""
        options = self.config.method
        split = self.data.splits["val"]
        names = self.members.names
        most = min(options.candidates, self.data.num_labels)
        blocks = np.array_split(np.arange(len(split)), -(-len(split) // FITTED_AT_ONCE))
        parts = []
        with progress(len(split), "ask the members", "points") as bar:
            for rows in blocks:
                opened = self.members.open(split.texts[rows], names)
                parts.append(ask(opened, most, self.data.num_labels))
                bar.update(len(rows))
        candidates = joined(parts).without_pairs(split.filters)
        candidates.check_finite(names, "validation points")
        return candidates

    def _fitted(self, seen: SeenLabels) -> FittedFusers:
        """Fusers of the validation points' candidates."""
        options = self.config.method
        relevance = self.data.splits["val"].relevance
        choice = FuserChoice(
            kinds=KINDS if options.fuser == "auto" else (options.fuser,),
            limits=TreeLimits(options.trees, options.leaves, options.min_leaf),
            target=f"{options.target.partition('@')[0]}@{min(5, self.data.num_labels)}",
        )
        validation = Validation(relevance, self.data.label_weights())
        return fit_fusers(self._candidates(), self.members.names, validation, seen, choice)

    def held_out_scores(self) -> sp.csr_matrix | None:
        """Cross-fitted scores of the validation points, which the fuser was fitted on."""
        return None if self.fusers is None else self.fusers.crossed

    def taken_decider(self) -> Decider | None:
        """Thresholds of the fusion whose fusers are taken."""
        return self._decider

    def ranker(self) -> FusionRanker:
        assert self.fusers is not None, "fit comes first"
        return FusionRanker(self.config, self.members, self.fusers, self.data.relevance_hash)


def described(config: Config) -> str:
    """A fusion by its members' names."""
    options = config.method
    names = [*(options.members or ())]
    if options.memory:
        names.append(f"{MEMORY} over {options.memory}")
    return f"a fusion of {', '.join(names)}"


def _methods(members: Members) -> dict[str, str]:
    """The method of each member."""
    return {name: ranker.config.method.name for name, ranker in members.rankers.items()}


def _check_methods(ours: Mapping[str, str], fitted_on: Mapping[str, str]) -> None:
    """ConfigError where a fuser would be taken for a member of another method than its own.

    Its trees know the scale of the scores that they were fitted on.
    """
    for name, method in fitted_on.items():
        if ours[name] != method:
            raise ConfigError(
                f"run.start_from: its fuser was fitted on a {method} run as member {name}, here "
                f"{name} is a {ours[name]} run; `start_from: null` fits a new fuser"
            )


def _check_same(ours: str, theirs: str) -> None:
    """ConfigError unless both are fusions of the same members."""
    if ours != theirs:
        raise ConfigError(
            f"run.start_from: expected {ours}, whose fuser is taken, got {theirs}; "
            "`start_from: null` fits a new fuser"
        )
