"""The registry of methods: what `method.name` stands for, imported when it is asked for.

A name with a colon, `my_module:MyRecipe`, is a method outside of this repository; see
utils/config/plugins.py for who may name one.
"""

from __future__ import annotations

import importlib
from typing import Any

from utils.config.plugins import is_foreign, resolve
from utils.config.sections import MethodConfig
from utils.config.yaml_text import shown_word
from utils.errors import ConfigError

METHODS = {
    "dexml": "models.dual.dexml:Dexml",
    "ngame": "models.dual.ngame:Ngame",
    "dexa": "models.dual.dexa:Dexa",
    "elias-1": "models.elias.learner:Elias1",
    "elias-2": "models.elias.learner:Elias2",
    "elias-ranker": "models.elias.sparse_ranker:EliasRanker",
    "ova": "models.classifiers.ova:Ova",
    "surrogate": "models.classifiers.surrogate:Surrogate",
    "xc": "models.classifiers.xc:Xc",
    "xr-linear": "models.trees.xr_linear:XrLinear",
    "overlap": "models.trees.overlap:Overlap",
    "fused": "models.classifiers.fused:Fused",
    "fusion": "models.fusion.recipe:Fusion",
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
    module, _, attribute = METHODS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def method_options(name: Any, where: str = "config") -> type[MethodConfig]:
    """The type of the section `method:` of a method. Arguments and errors as of `method_class`."""
    return method_class(name, where).Options


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
