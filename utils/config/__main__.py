"""Prints every key with its default, its limits and its meaning.

    python -m utils.config                    # all sections, all methods
    python -m utils.config data xr-linear     # these alone

What it prints of a key stands in utils/config/sections.py and in the sections of the methods.
"""

from __future__ import annotations

import argparse

from utils.commands import add_debug_option, command
from utils.config.config import describe
from utils.console import show_anything


def main() -> None:
    """Run the command."""
    show_anything()
    parser = argparse.ArgumentParser(
        prog="python -m utils.config", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "asked", nargs="*", metavar="SECTION|METHOD", help="these alone, such as: data xr-linear"
    )
    add_debug_option(parser)
    options = parser.parse_args()
    with command(options.debug):
        print(describe(options.asked))


if __name__ == "__main__":
    main()
