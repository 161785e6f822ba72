"""Work inside somebody else's program, which finds its state afterwards as it was."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator

import numpy as np
import torch

from utils.console import lent_screen
from utils.run.logs import lent_logging


@contextlib.contextmanager
def lent_process(verbose: bool = False) -> Iterator[None]:
    """Give back logging, screen, random states, threads and environment when the block ends.

    Args:
        verbose: as of `lent_logging`.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(lent_screen())
        stack.enter_context(lent_logging(verbose))
        stack.enter_context(lent_random_states())
        stack.enter_context(lent_threads())
        stack.enter_context(lent_environment())
        yield


@contextlib.contextmanager
def lent_random_states() -> Iterator[None]:
    """Give back the random states of Python, numpy and torch, of GPUs too."""
    python = random.getstate()
    numpy = np.random.get_state()
    torch_state = torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_state)
        if gpus is not None:
            torch.cuda.set_rng_state_all(gpus)


@contextlib.contextmanager
def lent_threads() -> Iterator[None]:
    """Give back torch's number of threads and whether its algorithms are deterministic."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@contextlib.contextmanager
def lent_environment() -> Iterator[None]:
    """Give back the environment variables."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        for name, value in before.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
