"""Options of a command that say how points of a user's file are read; without other imports.

add_point_options(parser, "texts")
options = parser.parse_args()
reader = given_reader(options, options.texts)  # of utils.prepare.point_files
"""

from __future__ import annotations

import argparse

from utils.prepare.columns import add_csv_options, add_name_options

FORMATS = ("text", "csv", "tsv", "jsonl")


def add_point_options(
    parser: argparse.ArgumentParser,
    option: str,
    labels: bool = False,
) -> None:
    """Add the options that `given_reader` reads.

    Args:
        option: that names the file, without dashes; `--OPTION-format` says its format.
        labels: points have labels.
    """
    parser.add_argument(
        f"--{option}-format",
        dest="points_format",
        choices=FORMATS[1:] if labels else FORMATS,
        help="default: by the file's name (.csv, .tsv, .jsonl; also .gz), else text",
    )
    add_name_options(parser, labels)
    add_csv_options(parser, labels)
