"""XMCKit: extreme multi-label classification, in Python and by one command.

from xmckit import XMC

model = XMC("best").fit(texts, labels)                # lists of str, lists of lists of names
model.predict("a new text", k=5)                      # its labels' names, best first
model.save("my_model");  XMC.load("my_model")

python -m xmckit COMMAND ...     # a command, such as train, eval or predict
python -m xmckit --help          # all of them
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.estimator import XMC

__all__ = ["XMC", "__version__"]
__version__ = "0.1.0"
COMMANDS = {  # by name: the module that is run, and what it does
    "advise": ("utils.advise", "say of a data set which presets suit, and what each takes"),
    "config": ("utils.config", "print every key of a config with its default and meaning"),
    "elias_utils": ("elias_utils", "offline steps of elias: graphs, rankers, quantization"),
    "eval": ("eval", "evaluate a run"),
    "export": ("utils.export", "write a run for other programs, or for another machine"),
    "features": ("utils.features", "build the TF-IDF features of a data set"),
    "metrics": ("utils.metrics", "score anybody's matrix of scores"),
    "predict": ("predict", "labels for new texts"),
    "prepare": ("utils.prepare", "other formats to a data set"),
    "report": ("utils.report", "pages and tables of several runs"),
    "serve": ("serve", "answer requests over HTTP"),
    "sweep": ("utils.sweep", "train a config with other values, and keep the best"),
    "train": ("train", "train a config"),
}


def __getattr__(name: str) -> Any:
    """`xmckit.XMC`, which imports torch, when it is asked for: --help is instant."""
    if name == "XMC":
        from engine.estimator import XMC

        return XMC
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the name of a command; its own words are left to it."""
    commands = "\n".join(f"  {name:13}{meaning}" for name, (_, meaning) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        "xmckit",
        description=f"{__doc__}\ncommands (each has its own --help):\n{commands}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"xmckit {__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=[*COMMANDS], help="one of the above")
    parser.add_argument("words", metavar="...", nargs=argparse.REMAINDER, help="its arguments")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command, as `python train.py ...` or `python -m utils.prepare ...` do."""
    options = parse_arguments(arguments)
    module, _ = COMMANDS[options.command]
    sys.argv = [f"xmckit {options.command}", *options.words]
    if __package__:  # installed: all modules lie inside of the package
        module = f"{__package__}.{module}"
    runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
    main()
