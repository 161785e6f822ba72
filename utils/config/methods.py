"""The registry of methods: what `method.name` stands for, imported when it is asked for.

A name with a colon, `my_module:MyRecipe`, is a method outside of this repository; see
utils/config/plugins.py for who may name one.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from utils.config.plugins import is_foreign, resolve
from utils.config.sections import MethodConfig
from utils.config.yaml_text import shown_word
from utils.errors import ConfigError


@dataclass(frozen=True)
class Method:
    """What a name stands for.

    Attributes:
        place: `module:class` of its recipe.
        about: what it is, in a line.
        paper: where it was published; "" of what is this project's own.
    """

    place: str
    about: str
    paper: str


DEXML_PAPER = "Gupta et al., ICLR 2024, arXiv 2310.10636"
ELIAS_PAPER = "Gupta et al., NeurIPS 2022, arXiv 2210.08410"
DEXA_PAPER = "Dahiya et al., KDD 2023"
METHODS = {
    "dexml": Method(
        "models.dual.dexml:Dexml",
        "dual encoder of points and label texts, trained against all labels or a pool of them",
        DEXML_PAPER,
    ),
    "ngame": Method(
        "models.dual.ngame:Ngame",
        "dual encoder trained on batches of similar points: their labels are hard negatives",
        "Dahiya et al., WSDM 2023",
    ),
    "dexa": Method(
        "models.dual.dexa:Dexa",
        "dual encoder whose label embeddings have auxiliary vectors, one a cluster of labels",
        DEXA_PAPER,
    ),
    "elias-1": Method(
        "models.elias.learner:Elias1",
        "encoder, clusters and label classifiers over a fixed graph of clusters and labels",
        ELIAS_PAPER,
    ),
    "elias-2": Method(
        "models.elias.learner:Elias2",
        "elias-1 that learns the edges of the graph too",
        ELIAS_PAPER,
    ),
    "elias-ranker": Method(
        "models.elias.sparse_ranker:EliasRanker",
        "ELIAS++: sparse linear rankers that re-rank what an elias stage finds",
        f"{ELIAS_PAPER}, section 4",
    ),
    "ova": Method(
        "models.classifiers.ova:Ova",
        "one linear classifier a label on a text encoder, all trained together",
        f"{DEXML_PAPER} (its classifier baseline)",
    ),
    "surrogate": Method(
        "models.classifiers.surrogate:Surrogate",
        "encoder that learns to find clusters of labels, where labels have no texts; before xc",
        "DeepXML: Dahiya et al., WSDM 2021",
    ),
    "xc": Method(
        "models.classifiers.xc:Xc",
        "one linear classifier a label on an encoder that was trained before",
        "DeepXML: Dahiya et al., WSDM 2021; NGAME, WSDM 2023; DEXA, KDD 2023",
    ),
    "xr-linear": Method(
        "models.trees.xr_linear:XrLinear",
        "tree of linear rankers over TF-IDF: no encoder, no GPU, seconds to minutes",
        "PECOS: Yu et al., JMLR 2022, arXiv 2010.05878",
    ),
    "overlap": Method(
        "models.trees.overlap:Overlap",
        "xr-linear whose labels stand in several clusters",
        "Liu et al., NeurIPS 2021, arXiv 2106.12751",
    ),
    "fused": Method(
        "models.classifiers.fused:Fused",
        "an xc run's classifiers and label embeddings, their scores joined on validation points",
        DEXA_PAPER,
    ),
    "fusion": Method(
        "models.fusion.recipe:Fusion",
        "runs of any methods propose and score labels, a fuser fitted on validation points joins "
        "them",
        "",
    ),
}


def method_class(name: Any, where: str = "config") -> type[Any]:
    """The class of a method.

    Args:
        where: the file that names it, for errors.
    Raises:
        ConfigError: there is no method of this name, or it is one outside that was not allowed.
    """
    if is_foreign(name):
        return _foreign_method(name, f"{where}: method.name")
    if not isinstance(name, str) or name not in METHODS:
        raise ConfigError(
            f"{where}: unknown method.name '{shown_word(name)}'; known: {known_methods()}"
        )
    module, _, attribute = METHODS[name].place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def method_options(name: Any, where: str = "config") -> type[MethodConfig]:
    """The type of the section `method:` of a method. Arguments and errors as of `method_class`."""
    return method_class(name, where).Options


def method_lines(names: Iterable[str]) -> str:
    """A line a method: its name, what it is, its paper."""
    listed = list(names)
    width = max(map(len, listed), default=0)
    lines = []
    for name in listed:
        method = METHODS[name]
        paper = f" ({method.paper})" if method.paper else ""
        lines.append(f"{name:<{width}}  {method.about}{paper}")
    return "\n".join(lines)


def known_methods() -> str:
    """Names of the methods, for messages."""
    return ", ".join(sorted(METHODS))


def _foreign_method(name: str, where: str) -> type[Any]:
    method = resolve(name, where)
    options = getattr(method, "Options", None)
    if not isinstance(options, type) or not issubclass(options, MethodConfig):
        raise ConfigError(
            f"{where}: expected the class of a method, whose `Options` are a MethodConfig; "
            f"{name} is {shown_word(repr(method))}"
        )
    answers = getattr(method, "Answers", None)
    if not isinstance(answers, type):
        raise ConfigError(
            f"{where}: {name} has no `Answers`: the class of the ranker that loads its model"
        )
    if missing := getattr(answers, "__abstractmethods__", None):
        raise ConfigError(
            f"{where}: {name}: its `Answers`, {answers.__name__}, must define "
            f"{', '.join(sorted(missing))}"
        )
    return method
