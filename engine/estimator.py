"""XMCKit as scikit-learn's estimators are used: texts and labels in memory, no files asked for.

model = XMC("tree").fit(texts, labels)
model.predict(new_texts, k=5)
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from engine.decided import thresholds_of
from engine.estimator_files import (
    RUN,
    Facts,
    Workspace,
    config_path,
    nested_overrides,
    write_data_set,
)
from engine.exported_run import write_answering
from engine.label_inputs import read_labels, relevance_of
from engine.predictor import Predictor
from engine.ranked_labels import AUTO, RankedLabels, Threshold, checked_k, ranked_labels
from engine.trainer import fit as train
from models.evaluation import USUAL_KS, USUAL_TOP_K
from utils import metrics
from utils.answering.decisions import decision_metrics
from utils.config.config import Config, ConfigError
from utils.config.legacy_yaml import load_any_config
from utils.config.trust import is_ones_own
from utils.data.texts import ListTexts
from utils.distributed import launched_processes
from utils.errors import InputError
from utils.files import check_new_folder, folder_written_whole
from utils.lending import lent_process, lent_threads
from utils.run.folder import ESTIMATOR
from utils.run.stages import member_stages
from utils.sparse import topk_csr
from utils.text import text_list
from utils.training.interrupt import Interrupted

PRIMARY = "P@1"  # what `score` returns
NAME = "texts"  # of the data set of a fit


class XMC(BaseEstimator):
    """Extreme multi-label classification of texts, by scikit-learn's conventions.

    Args:
        config: name of a preset (tree, encoder, classifiers, index, best), path of a YAML config,
            or its sections as a mapping.
        overrides: settings by key, {"train.epochs": 3, "stages.NAME.optim.lr": 1e-3}.
        folder: keeps the data set, the run and its report; a new or empty one. None = a temporary
            folder that goes with the object.
        random_state: seed of everything random; None = that of the config.
        verbose: show the log of training, not warnings alone.

    Attributes:
        classes_: names of the labels [L], in the order of columns of all matrices.
        predictor_: the `Predictor` that answers.
        run_folder_: folder of the run, readable by `eval.py`, `predict.py` and the others.
        label_counts_: training points of each label [L]; None of a run that was loaded without.
    """

    def __init__(
        self,
        config: str | Path | Mapping[str, Any] = "best",
        *,
        overrides: Mapping[str, Any] | None = None,
        folder: str | Path | None = None,
        random_state: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.config = config
        self.overrides = overrides
        self.folder = folder
        self.random_state = random_state
        self.verbose = verbose

    # ---- training
    def fit(
        self,
        texts: Iterable[str],
        labels: Any,
        label_texts: Any = None,
    ) -> XMC:
        """Train on texts and their labels.

        Some of them are held out for choosing the best epoch and for calibration
        (`data.val_fraction`).

        Args:
            texts: n of them: a list, a Series, a column of `datasets`.
            labels: for each text the names of its labels, or a matrix [n, L], dense, sparse or a
                DataFrame.
            label_texts: {name: text}, where labels without a training text may be among them; of a
                matrix also its L texts. None = names are texts.
        Raises:
            InputError: what came is none of this, or the config does not fit it.
        """
        _check_one_process()
        listed = text_list(texts, "texts")
        labelled = read_labels(labels, label_texts)
        _check_lengths(listed, labelled.relevance)
        workspace = self._workspace()
        with lent_process(self.verbose):
            data = write_data_set(workspace.folder, listed, labelled, NAME)
            config = self._read_config(workspace.folder, data)
            try:
                run = train(config, overwrite=True)
            except Interrupted as stop:
                raise KeyboardInterrupt(str(stop)) from stop
            facts = Facts.of(self.get_params(), labelled)
            facts.save(run)
            self._take(Predictor(run), facts)
        self._workspace_ = workspace
        return self

    def _workspace(self) -> Workspace:
        """Where this fit works: the folder of the one before, or a new one."""
        before: Workspace | None = getattr(self, "_workspace_", None)
        if self.folder is None:
            return Workspace.temporary()
        if before is not None and before.folder == Path(self.folder).resolve():
            return before
        return Workspace.named(self.folder)

    def _read_config(self, folder: Path, data: Path) -> Config:
        """The config of a fit, on its data set and in its folder."""
        overrides = nested_overrides(self.overrides or {})
        of_data = {"root": str(data.parent), "name": data.name, "filters": "optional"}
        of_run: dict[str, Any] = {"dir": str(folder / RUN)}
        if self.random_state is not None:
            of_run["seed"] = _checked_seed(self.random_state)
        for section, values in {"data": of_data, "run": of_run}.items():
            given = overrides.setdefault(section, {})
            if taken := values.keys() & given.keys():
                raise ConfigError(
                    f"overrides: {section}.{min(taken)} is the estimator's own; expected another "
                    "key"
                )
            given.update(values)
        overrides["run"].setdefault("tensorboard", False)
        path = config_path(self.config, folder)
        # that of a run folder, which `load` has put here, may be a stranger's
        trusted = is_ones_own(path) or isinstance(self.config, Mapping)
        return load_any_config(path, overrides, expand=member_stages, trusted=trusted)

    def _take(self, predictor: Predictor, facts: Facts) -> None:
        """Become fitted."""
        self.predictor_ = predictor
        self.run_folder_ = predictor.folder
        kind = object if isinstance(facts.names[0], str) else np.int64
        self.classes_ = np.array(facts.names, kind)
        self.label_counts_ = facts.label_counts
        self.num_points_ = facts.num_points

    # ---- answers
    def predict(
        self,
        texts: str | Iterable[str],
        k: int = 5,
        threshold: Threshold = AUTO,
        return_scores: bool = False,
    ) -> list[Any]:
        """The labels of each text, best first; of one text alone, which is no list, its labels.

        Args:
            k: labels of a text at most.
            threshold: probability that labels must have at least; "auto" = what was chosen on
                validation points in training, where there were some; None = k labels.
            return_scores: answer as a `Predictor` does, {"label": name, "text": label text,
                "score": ..., "probability": ...}, instead of by names.
        Raises:
            InputError: what is given is no text, or a number for a threshold and no probabilities.
        """
        check_is_fitted(self)
        if threshold == AUTO and self.predictor_.ranker.decider is None:
            threshold = None
        with self._own_threads():
            answers = self.predictor_(texts, min(checked_k(k), len(self.classes_)), threshold)
        if isinstance(texts, str):
            return self._named(answers, return_scores)
        return [self._named(answer, return_scores) for answer in answers]

    def _named(self, answer: list[Any], return_scores: bool) -> list[Any]:
        """One text's labels by names."""
        names = [self.classes_[entry["label"]] for entry in answer]
        if not return_scores:
            return names
        return [{**entry, "label": name} for entry, name in zip(answer, names, strict=True)]

    def decision_function(self, texts: str | Iterable[str], k: int = USUAL_TOP_K) -> sp.csr_matrix:
        """Scores of the k best labels of each text, CSR [n, L]; other labels have no entry."""
        ranked = self._ranked(texts, k)
        return topk_csr(ranked.scores, ranked.ids, len(self.classes_))

    def predict_proba(self, texts: str | Iterable[str], k: int = USUAL_TOP_K) -> sp.csr_matrix:
        """How likely the k best labels of each text are right, CSR [n, L]; others have no entry.

        Raises:
            InputError: there were no validation points to tell them by.
        """
        ranked = self._ranked(texts, k)
        if ranked.probabilities is None:
            raise InputError(
                "probabilities are calibrated on validation points, and the fit had none "
                "(data.val_fraction, or too few texts); decision_function gives scores"
            )
        return topk_csr(ranked.probabilities, ranked.ids, len(self.classes_))

    def _ranked(self, texts: str | Iterable[str], k: int) -> RankedLabels:
        """The k best labels of each text; InputError for a k that is no whole number from 1."""
        check_is_fitted(self)
        listed = text_list(texts, "texts")
        with self._own_threads():
            found = ranked_labels(self.predictor_.ranker, ListTexts(listed), checked_k(k))
        assert found is not None, "an estimator works in one process"
        return found

    @contextlib.contextmanager
    def _own_threads(self) -> Iterator[None]:
        """Compute on the threads of the config inside, on the caller's afterwards."""
        with lent_threads():
            torch.set_num_threads(self.predictor_.runtime.threads)
            yield

    # ---- quality
    def evaluate(self, texts: Iterable[str], labels: Any) -> dict[str, float]:
        """Metrics of texts whose labels are known, in percent, by keys such as "P@1".

        Of labels above the thresholds that were chosen in training also "micro_F1" and its kin,
        where there were validation points and a threshold reaches `eval.wanted_precision`. Labels
        that training did not have are left out, and counted in the log.
        """
        check_is_fitted(self)
        listed = text_list(texts, "texts")
        relevance = relevance_of(labels, self.classes_.tolist())
        _check_lengths(listed, relevance)
        ks = [k for k in USUAL_KS if k <= len(self.classes_)]
        ranked = self._ranked(listed, max(ks))
        scores = topk_csr(ranked.scores, ranked.ids, len(self.classes_))
        found = metrics.evaluate(scores, relevance, self._inverse_propensity(), ks)
        thresholds = thresholds_of(self.predictor_.ranker)
        if thresholds is None or ranked.probabilities is None:
            return found
        decided = ranked.above(thresholds)
        answers = topk_csr(decided.scores, decided.ids, len(self.classes_))
        return {**found, **decision_metrics(answers, relevance)}

    def score(self, texts: Iterable[str], labels: Any) -> float:
        """P@1 from 0 to 1: the share of texts whose best label is right."""
        return self.evaluate(texts, labels)[PRIMARY] / 100

    def _inverse_propensity(self) -> npt.NDArray[np.float64] | None:
        """1 / p_l of each label [L], where it is defined and the counts are known."""
        if self.label_counts_ is None or self.num_points_ < 3:
            return None
        data = self.predictor_.config.data
        return metrics.inverse_propensity(
            self.label_counts_, self.num_points_, data.propensity_a, data.propensity_b
        )

    # ---- keeping
    def save(self, folder: str | Path) -> Path:
        """Write the model to a new or empty folder, which `XMC.load` and `serve.py` open."""
        check_is_fitted(self)
        folder = Path(folder).resolve()
        check_new_folder(folder)
        with folder_written_whole(folder) as partial:
            write_answering(self.run_folder_, self.predictor_.config, partial)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> XMC:
        """Open a saved folder, that of a fit or of a run.

        Raises:
            InputError: it is none of these.
        """
        path = Path(folder)
        if not (path / "config.yaml").is_file() and (path / RUN / "config.yaml").is_file():
            path = path / RUN
        model = cls()
        facts = model._open(path)
        unknown = facts.parameters.keys() - model.get_params().keys()
        if unknown:
            raise InputError(f"{path / ESTIMATOR}: parameters: XMC has no {min(unknown)[:60]!r}")
        return model.set_params(**facts.parameters)

    def _open(self, folder: Path) -> Facts:
        """Become what is saved in a folder."""
        with lent_process(self.verbose):
            predictor = Predictor(folder)
            facts = Facts.read(predictor)
        self._take(predictor, facts)
        return facts

    # ---- scikit-learn
    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Parameters, and of a fitted one what `save` writes, as bytes."""
        state: dict[str, Any] = {"parameters": self.get_params()}
        if self.__sklearn_is_fitted__():
            with tempfile.TemporaryDirectory(prefix="xmckit-") as folder:
                state["saved"] = _packed(self.save(Path(folder) / "model"))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["parameters"])  # type: ignore[misc]  # what pickle leaves out
        if "saved" in state:
            workspace = Workspace.temporary()
            with zipfile.ZipFile(io.BytesIO(state["saved"])) as archive:
                archive.extractall(workspace.folder)
            self._open(workspace.folder)
            self._workspace_ = workspace

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "predictor_")


def _check_one_process() -> None:
    """InputError in a process of several that a launcher has started."""
    processes = launched_processes()
    if processes > 1:
        raise InputError(
            f"XMC works in one process, but this is one of {processes}; `python -m utils.prepare` "
            "and `accelerate launch train.py` train on several, XMC.load opens their run"
        )


def _checked_seed(seed: Any) -> int:
    """The seed of a config; ConfigError for what is no whole number."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise ConfigError(
            f"random_state: expected a whole number or None, got {seed!r} ({type(seed).__name__})"
        )
    return int(seed)


def _packed(folder: Path) -> bytes:
    """The files of a folder as one archive."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return packed.getvalue()


def _check_lengths(texts: Sequence[str], relevance: sp.csr_matrix) -> None:
    """InputError unless there are labels for each text, and a text at least."""
    if len(texts) != relevance.shape[0]:
        raise InputError(
            f"expected the labels of each text, got {len(texts)} texts and labels of "
            f"{relevance.shape[0]}"
        )
    if not texts:
        raise InputError("texts: expected at least one, got none")
