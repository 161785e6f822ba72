"""Build or check the TF-IDF features of a data set.

    python -m utils.features Datasets/LF-DebianTitles-small

See utils/features/files.py.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from utils.commands import add_debug_option, command


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="data set folder")
    parser.add_argument(
        "--texts", action="store_true", help="build, even where X.{trn,tst}.npz are given"
    )
    parser.add_argument(
        "--terms", choices=("auto", "words", "characters"), default="auto", help="as data.terms"
    )
    parser.add_argument(
        "--cache", metavar="FOLDER", help="as data.feature_cache: where features are built"
    )
    add_debug_option(parser)
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    """Run the command."""
    with command(options.debug):
        from utils.config.config import DataConfig  # here: --help is instant, and Ctrl-C a line
        from utils.console import show_anything
        from utils.features.files import check_available, find_features

        show_anything()
        logging.basicConfig(format="%(message)s", level=logging.INFO)
        settings = DataConfig(
            features="texts" if options.texts else "given",
            terms=options.terms,
            feature_cache=options.cache,
        )
        check_available(options.folder, settings)
        files = find_features(options.folder, settings)
        trn = files.check()
        tst = files.matrix("tst")
    print(
        f"{files.folder}: X.trn {trn.shape[0]:,} x {trn.shape[1]:,}, X.tst {tst.shape[0]:,} x "
        f"{tst.shape[1]:,}"
    )


if __name__ == "__main__":
    main(parse_arguments())
