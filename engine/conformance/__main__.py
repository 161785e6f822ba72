"""Train and ask one config that `check_processes` has written, in each of its processes."""

from __future__ import annotations

import argparse
import faulthandler

from engine.conformance.processes import train_and_ask
from utils import distributed
from utils.config.config import load_config


def main() -> None:
    """Parse the command line and run what it asks for."""
    parser = argparse.ArgumentParser(prog="python -m engine.conformance")
    parser.add_argument("config", help="modules that it names are imported")
    parser.add_argument(
        "--seconds", type=int, required=True, help="where it still is then is its last word"
    )
    options = parser.parse_args()
    faulthandler.dump_traceback_later(options.seconds, exit=True)
    train_and_ask(load_config(options.config, trusted=True))
    faulthandler.cancel_dump_traceback_later()
    distributed.stop()


if __name__ == "__main__":
    main()
