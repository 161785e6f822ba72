"""A run folder -> its ranker, ready to answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from models.contract import Ranker, Start
from utils.answering.decider import DECIDER, Decider
from utils.config.config import Config, ConfigError
from utils.config.methods import method_class
from utils.errors import InputError
from utils.reading.saved import read_facts
from utils.run.finding import find_run
from utils.run.model_files import FACTS, NewerModelError, model_format
from utils.runtime import Runtime


def load_ranker(
    config: Config,
    run_folder: Path,
    runtime: Runtime,
) -> Ranker:
    """The trained model of a run.

    Raises:
        NewerModelError: the model is of a newer version of this program.
        InputError: a file of the model is missing, damaged, or does not fit the run's config. What
            else a method raises, one of a module outside too, is its own and passed on.
    """
    folder = run_folder / "model"
    try:
        return read_ranker(config, run_folder, runtime)
    except NewerModelError:
        raise
    except (InputError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:  # of no file
            raise
        raise InputError(
            f"{folder}: the model cannot be loaded; a file is missing or damaged, or it is of "
            f"another config: {' '.join(str(error).split())}"
        ) from error


def read_ranker(
    config: Config,
    run_folder: Path,
    runtime: Runtime,
) -> Ranker:
    """As `load_ranker`, for a model inside another one, whose errors are told once."""
    folder = run_folder / "model"
    kind = method_class(config.method.name)
    model_format(folder)
    facts = read_facts(folder / FACTS, method=str, num_labels=int)
    if facts["method"] != config.method.name:
        raise InputError(
            f"{folder / FACTS}: a model of method {facts['method']}, but the run's config "
            f"has {config.method.name}"
        )
    ranker: Ranker = kind.Answers.load(config, folder, facts["num_labels"], runtime)
    if (folder / DECIDER).is_file():
        ranker.decider = Decider.load(folder / DECIDER, ranker.num_labels)
    return ranker


def load_run(
    run: str | Path, runtime: Runtime, overrides: Sequence[str] = ()
) -> tuple[Ranker, Path]:
    """The ranker of a finished run, and the run's folder."""
    folder, config = find_run(run, overrides)
    return load_ranker(config, folder, runtime), folder


def start_of(config: Config, runtime: Runtime) -> Start | None:
    """What loads the model of `run.start_from`; None where a run starts from none."""
    source = config.run.start_from
    if not source:
        return None

    def load() -> Ranker:
        try:
            folder, before = find_run(source)
        except InputError as error:
            raise ConfigError(
                f"run.start_from: {error}; train that run first, or name another"
            ) from error
        return load_ranker(before, folder, runtime)

    return load


def check_options(ranker: Ranker) -> None:
    """InputError for options of section eval that a ranker cannot follow.

    An approximate index, a precision, members to leave out.
    """
    options = ranker.config.eval
    name = ranker.config.method.name
    if options.without and "without" not in ranker.takes:
        raise InputError(
            f"eval.without is {list(options.without)}, but method {name} has no members to leave "
            "out; only a fusion has"
        )
    if options.precision != "float32" and "precision" not in ranker.takes:
        raise InputError(
            f"eval.precision is '{options.precision}', but method {name} has no graph index; it "
            "needs eval.precision: float32"
        )
    if options.index != "exact" and "index" not in ranker.takes:
        raise InputError(
            f"eval.index is '{options.index}', but method {name} does not search all labels by "
            "inner product; it needs eval.index: exact"
        )
