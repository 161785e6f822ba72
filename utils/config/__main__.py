"""Says what can be set: every key with its default, its limits and its meaning.

    python -m utils.config                                # all sections, all methods
    python -m utils.config data xr-linear                 # these alone
    python -m utils.config methods                        # a line a method, with its paper
    python -m utils.config CONFIG.yaml                    # a file's config, every key resolved
    python -m utils.config CONFIG.yaml train method       # these sections of it
    python -m utils.config CONFIG.yaml --train.epochs 3   # with what a command line would change

What it prints of a key stands in utils/config/sections.py and in the sections of the methods, what
it says of a method in utils/config/methods.py. A run folder or a preset is a file, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.commands import add_debug_option, command
from utils.config.command_line import parse_words
from utils.config.config import (
    OUTSIDE,
    SECTIONS,
    Config,
    ConfigError,
    describe,
    nearest,
    to_mapping,
    to_yaml,
)
from utils.config.methods import METHODS, method_lines
from utils.config.plugins import add_plugin_option
from utils.config.presets import PRESETS
from utils.config.yaml_text import CONFIG_SUFFIXES, dump_yaml
from utils.console import show_anything

LIST = "methods"  # the word for all of them


def main(words: Sequence[str] | None = None) -> None:
    """Run the command."""
    show_anything()
    parser = argparse.ArgumentParser(
        prog="python -m utils.config",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "asked",
        nargs="*",
        metavar="SECTION|METHOD|FILE",
        help="these alone, such as: data xr-linear; of a file the sections named behind it",
    )
    add_plugin_option(parser)
    add_debug_option(parser)
    options, overrides = parse_words(parser, words)
    with command(options.debug):
        print(told(options.asked, overrides))


def told(asked: Sequence[str], overrides: Sequence[str] = ()) -> str:
    """What is printed.

    Raises:
        ConfigError: a word that is neither a section nor a method nor a file, or a file that cannot
            be used.
    """
    if asked and (is_file(asked[0]) or (overrides and asked[0] in PRESETS)):
        return of_file(Path(asked[0]), asked[1:], overrides)
    if overrides:
        raise ConfigError(
            f"{overrides[0]} goes with a file: python -m utils.config CONFIG.yaml ..."
        )
    if list(asked) == [LIST]:
        return method_lines(sorted(METHODS))
    known = sorted({*SECTIONS, *METHODS, *PRESETS, LIST})
    for word in asked:
        if word not in {*SECTIONS, *METHODS}:
            raise ConfigError(f"there is no section, method or file '{word}'{nearest(word, known)}")
    return describe(asked)


def is_file(word: str) -> bool:
    """Whether a word stands for a file, a run folder or a preset, be it there or not."""
    if word in SECTIONS or word in METHODS:
        return False
    return word in PRESETS or word.endswith(CONFIG_SUFFIXES) or "/" in word or Path(word).exists()


def of_file(
    path: Path,
    sections: Sequence[str],
    overrides: Sequence[str],
) -> str:
    """A file's config as YAML with every key, or some sections of it.

    What a preset leaves to the data set is worked out where that is there.
    """
    from engine.choosing import chosen
    from utils.run.reopened import load_training_config  # here: --help is instant
    from utils.run.stages import member_stages

    if path.is_dir():
        path = path / "config.yaml"
    config = load_training_config(path, overrides, member_stages)
    if config.dataset_folder.is_dir():
        config = chosen(config)
    if not sections:
        return to_yaml(config).rstrip("\n")
    return dump_yaml(named_sections(config, sections)).rstrip("\n")


def named_sections(config: Config, sections: Sequence[str]) -> dict[str, object]:
    """Some sections of a config, and its stages where they are named.

    Raises:
        ConfigError: it has no such section.
    """
    values = to_mapping(config)
    known = [*SECTIONS, *(name for name in OUTSIDE if name in values)]
    for name in sections:
        if name not in known:
            raise ConfigError(f"the config has no section '{name}'{nearest(name, known)}")
    return {name: values[name] for name in sections}


if __name__ == "__main__":
    main()
