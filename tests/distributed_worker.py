"""Run under `accelerate launch`: trains, evaluates and asks each config given, one after the
other, in one process group.

accelerate launch … -m tests.distributed_worker [--resume] [--die RANK STEP] [--seconds N] CONFIG…
"""

import argparse
import faulthandler
import json
import os
import signal

import torch

from engine.conformance.processes import train_and_ask
from utils import distributed
from utils.config.config import load_config
from utils.training import meter


def record_losses(die=None):
    """Keep every step's loss; with `die`, kill that process at that step."""
    original = meter.EpochMeter.add
    losses = []

    def add(self, loss, batch):
        losses.append(float(loss))
        if die and (distributed.rank(), len(losses)) == tuple(die):
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, loss, batch)

    meter.EpochMeter.add = add
    return original, losses


def run(config, resume=False, die=None):
    original, losses = record_losses(die)
    try:
        train_and_ask(config, resume)
    finally:
        meter.EpochMeter.add = original
    if distributed.is_main():
        (config.run_folder / "steps.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--die", nargs=2, type=int)
    parser.add_argument("--seconds", type=int, help="where it still is then is its last word")
    parser.add_argument("configs", nargs="+")
    options = parser.parse_args()
    if options.seconds:
        faulthandler.dump_traceback_later(options.seconds, exit=True)
    for path in options.configs:
        run(load_config(path), options.resume, options.die)
    faulthandler.cancel_dump_traceback_later()
    distributed.stop()
    # a gloo thread left behind may abort the process at its end
    assert not torch.distributed.is_initialized()
