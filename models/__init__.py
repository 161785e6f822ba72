"""The registry of methods: method.name -> class."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError

from models.classifiers.fused import Fused
from models.classifiers.ova import Ova
from models.classifiers.surrogate import Surrogate
from models.classifiers.xc import Xc
from models.dual.dexa import Dexa
from models.dual.dexml import Dexml
from models.dual.ngame import Ngame
from models.elias.elias import Elias1, Elias2
from models.elias.sparse_ranker import EliasRanker
from models.fusion.fusion import Fusion
from models.method import Method
from models.trees.overlap import Overlap, XrLinear
from utils.config.config import Config
from utils.errors import InputError
from utils.reading.saved import read_facts

METHODS = {
    "dexml": Dexml,
    "ngame": Ngame,
    "dexa": Dexa,
    "elias-1": Elias1,
    "elias-2": Elias2,
    "elias-ranker": EliasRanker,
    "ova": Ova,
    "surrogate": Surrogate,
    "xc": Xc,
    "xr-linear": XrLinear,
    "overlap": Overlap,
    "fused": Fused,
    "fusion": Fusion,
}
METHOD_CONFIGS = {name: method.Config for name, method in METHODS.items()}


def load_method(config: Config, run_folder: Path) -> Method:
    """The trained model of a run, ready to score.

    Raises:
        ValueError: a file of the model is missing, damaged, or does not fit the run's config.
    """
    folder = run_folder / "model"
    try:
        labels = read_facts(folder / "method.json", num_labels=int)["num_labels"]
        return METHODS[config.method.name].load(config, folder, labels)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{folder}: the model cannot be loaded; a file is missing or damaged, or it is of "
            f"another config: {' '.join(str(error).split())}"
        ) from error
