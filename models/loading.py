"""The model of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from utils.config.config import Config
from utils.config.methods import method_class
from utils.errors import InputError
from utils.reading.saved import read_facts

if TYPE_CHECKING:
    from models.method import Method


def load_method(config: Config, run_folder: Path) -> Method:
    """The trained model of a run, ready to score.

    Raises:
        InputError: a file of the model is missing, damaged, or does not fit the run's config.
    """
    folder = run_folder / "model"
    try:
        labels = read_facts(folder / "method.json", num_labels=int)["num_labels"]
        return method_class(config.method.name).load(config, folder, labels)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{folder}: the model cannot be loaded; a file is missing or damaged, or it is of "
            f"another config: {' '.join(str(error).split())}"
        ) from error
