"""Train on the pretended GPU, stop, go on, evaluate and ask, and note where the host waited.

python -m tests.pretend.training STOPPED WHOLE [STOPPED WHOLE ...]     # in each process
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from engine import trainer
from engine.conformance.processes import train_and_ask
from tests.pretend.device import pretended_gpu
from tests.pretend.waits import Waits
from utils import distributed
from utils.config.config import Config, load_config

SECONDS = 100  # far more than it takes
STEADY = 2  # steps of a run that see what was made once: the last ones
Noted = list[dict[str, dict[str, int]]]  # of each step, by kind, by place


def train_on_gpu(stopped: Config, whole: Config) -> None:
    """Train a config until it stops and go on with the other one; a collective.

    Leaves what `train_and_ask` does, and `waits.json`: of the last STEADY steps of each stage.
    """
    with pretended_gpu() as waits, _noted(waits) as steps:
        trainer.fit(stopped)
        train_and_ask(whole, resume=True)
    if distributed.is_main():
        (whole.run_folder / "waits.json").write_text(json.dumps(steps))


@contextlib.contextmanager
def _noted(waits: Waits) -> Iterator[Noted]:
    """Note the waits of the last steps of training inside."""
    steps: Noted = []
    train_epoch = trainer.train_epoch
    take_step = trainer.take_step

    def epoch(*args):
        waits.clear()
        return train_epoch(*args)

    def step(*args):
        norm = take_step(*args)
        noted: dict[str, dict[str, int]] = {}
        for (kind, place), number in waits.items():
            noted.setdefault(kind, {})[place] = number
        steps[:] = [*steps, noted][-STEADY:]
        waits.clear()
        return norm

    with (
        mock.patch.object(trainer, "train_epoch", epoch),
        mock.patch.object(trainer, "take_step", step),
    ):
        yield steps


def waits_of(folder: Path, kind: str) -> dict[str, int]:
    """Waits of a step of a run's last stage by place, of the kind; the most of its last steps."""
    steps: Noted = json.loads((folder / "waits.json").read_text())
    return max((step.get(kind, {}) for step in steps), key=lambda found: sum(found.values()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("configs", nargs="+")
    options = parser.parse_args()
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    configs = map(load_config, options.configs)
    for stopped, whole in zip(configs, configs, strict=True):
        train_on_gpu(stopped, whole)
    faulthandler.cancel_dump_traceback_later()
    distributed.stop()


if __name__ == "__main__":
    main()
