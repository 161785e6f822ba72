"""The one door for code outside of this repository: names such as `my_module:MyRecipe`.

    allow("my_module")                    # --plugin my_module, or the config that the user trains
    resolve("my_module:MyRecipe", "my.yaml: method.name")

Whoever opens a folder decides whether its code may run; the folder never does.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any, NewType, TypeGuard

from utils.config.yaml_text import shown_word
from utils.errors import ConfigError


class NotAllowedError(ConfigError):
    """A name of foreign code in a folder that may be a stranger's."""


Foreign = NewType("Foreign", str)  # `module:name`, as the type of an option
_allowed: set[str] = set()


def allow(module: str) -> None:
    """From here on `resolve` imports this module when a name asks for it."""
    if not _is_dotted(module):
        raise ConfigError(
            f"--plugin: expected the name of a Python module, such as my_module, got "
            f"'{shown_word(module)}'"
        )
    _allowed.add(module)


def allowed() -> tuple[str, ...]:
    """The modules that may be imported: for processes that this one starts."""
    return tuple(sorted(_allowed))


def is_foreign(name: Any) -> TypeGuard[Foreign]:
    """Whether a name is that of something outside: `module:name`."""
    return isinstance(name, str) and ":" in name


def module_of(name: str) -> str:
    """The module of `module:name`."""
    return name.partition(":")[0]


def resolve(name: str, where: str) -> Any:
    """What `module:name` stands for, imported from sys.path or the current directory.

    Args:
        where: the file and key that say the name.
    Raises:
        ConfigError: the module was not allowed (nothing is imported then), is not there, or has no
            such name. What the module itself raises is passed on.
    """
    module, _, attribute = name.partition(":")
    if not _is_dotted(module) or not attribute.isidentifier():
        raise ConfigError(f"{where}: expected module:name, got '{shown_word(name)}'")
    if module not in _allowed:
        raise NotAllowedError(
            f"{where}: '{shown_word(name)}' is code outside of this repository and was not "
            f"imported; if you trust it: --plugin {module}"
        )
    imported = _import(module, where)
    try:
        return getattr(imported, attribute)
    except AttributeError:
        raise ConfigError(f"{where}: {imported.__file__} has no {attribute}") from None


def _import(module: str, where: str) -> Any:
    """The module; sys.path ends with the current directory from here on."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and asks for another that is not
        raise ConfigError(
            f"{where}: there is no module {error.name}, neither installed nor in {here}"
        ) from None


def _is_dotted(module: str) -> bool:
    return all(part.isidentifier() for part in module.split("."))


class _Allow(argparse.Action):
    """Allows the module of each --plugin as it is read."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        try:
            allow(values)
        except ConfigError as error:
            parser.error(str(error))


def add_plugin_option(parser: argparse.ArgumentParser) -> None:
    """`--plugin MODULE`, as often as there are modules."""
    parser.add_argument(
        "--plugin",
        action=_Allow,
        metavar="MODULE",
        help="let a run import this module of yours; may be given several times",
    )
