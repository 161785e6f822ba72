"""The command `python -m utils.prepare`: see utils/prepare/command.py."""

import signal
import sys

from utils.prepare.command import main


def _stop(number: int, _frame: object) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)  # an exception removes the unfinished folder
    main()
