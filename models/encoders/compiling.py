"""`train.compile`: the transformers of a run compiled for its machine by torch.compile.

Parameters keep their names, so that checkpoints and models are the same with it and without.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys

from torch import nn

from models.encoders.text_encoder import TextEncoder
from utils.cards import gpu_computes
from utils.config.config import Config, ConfigError


def check_compiler(config: Config) -> None:
    """ConfigError where a run is to be compiled and this machine lacks what that needs."""
    if not config.train.compile:
        return
    if gpu_computes() and importlib.util.find_spec("triton") is None:
        raise ConfigError(
            "train.compile is true, but the package triton, which compiles for GPUs, is not "
            "installed; install it or set train.compile to false"
        )
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"train.compile is true, but there is no C++ compiler: '{compiler}' was not found; "
            "install one, name it by CXX, or set train.compile to false"
        )


def compile_encoders(module: nn.Module) -> None:
    """Let the transformers inside a module be compiled when each is first called.

    For texts of any number and length; once each for training, for its first pass of gradient
    caching, and for evaluation.
    """
    for part in module.modules():
        if isinstance(part, TextEncoder):
            part.compile_parts()
