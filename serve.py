"""A saved run behind HTTP: labels for texts as JSON, and a page to type them on.

python serve.py RUN                                  # http://127.0.0.1:8000
python serve.py RUN --host 0.0.0.0 --port 80 --workers 4
XMCKIT_TOKEN=secret python serve.py RUN              # requests need `Authorization: Bearer secret`

SIGHUP loads the run anew and answers with it; SIGTERM ends the service when what is in flight has
been answered. Needs requirements-serve.txt.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Callable, Sequence

from engine.service.settings import Limits, Settings
from utils.commands import add_debug_option, command
from utils.config.command_line import parse_words
from utils.config.plugins import add_plugin_option, allowed
from utils.errors import InputError

TOKEN = "XMCKIT_TOKEN"
DEFAULTS = Limits()
NEEDED = ("fastapi", "uvicorn", "prometheus_client")
LIMITS = {  # option -> field of Limits, and its help
    "--max-texts": ("texts", "texts of a request"),
    "--max-characters": ("characters", "characters of a text"),
    "--max-k": ("k", "labels of an answer"),
    "--max-body": ("body", "bytes of a request's body"),
    "--max-waiting": ("waiting", "texts that may wait; more are refused with 503"),
    "--timeout": ("seconds", "seconds until a body has come, and until it is answered"),
}


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Return the options, and the overrides of the run's config."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", help="run folder or its config.yaml")
    parser.add_argument("--host", default="127.0.0.1", help="address (default 127.0.0.1)")
    parser.add_argument(
        "--port", type=_whole(0, 65535), default=8000, help="0 takes a free one (default 8000)"
    )
    parser.add_argument(
        "--workers",
        type=_whole(1, 512),
        default=1,
        help="processes, each with a model of its own (default 1)",
    )
    parser.add_argument(
        "--batch",
        type=_whole(1, 16384),
        default=64,
        help="texts answered together, where so many wait (default 64)",
    )
    group = parser.add_argument_group("the most that is answered")
    for name, (field, told) in LIMITS.items():
        default = getattr(DEFAULTS, field)
        group.add_argument(
            name,
            type=_whole(1, 1 << 40),
            default=default,
            dest=field,
            help=f"{told} (default {default:,})",
        )
    add_plugin_option(parser)
    add_debug_option(parser)
    return parse_words(parser, arguments)


def _whole(least: int, most: int) -> Callable[[str], int]:
    """Type of an option: a whole number within bounds."""

    def read(word: str) -> int:
        if not word.isascii() or not word.isdigit() or not least <= int(word[:20]) <= most:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {least} to {most}, got {word[:40]!r}"
            )
        return int(word)

    return read


def settings_of(options: argparse.Namespace, overrides: Sequence[str]) -> Settings:
    """What the command line and the environment say.

    Raises:
        InputError: the token cannot stand in a header.
    """
    token = os.environ.get(TOKEN)
    if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
        raise InputError(f"{TOKEN}: expected printable ASCII characters, got none or others")
    limits = {name: getattr(options, name) for name, _ in LIMITS.values()}
    return Settings(
        run=options.run,
        overrides=tuple(overrides),
        plugins=allowed(),
        host=options.host,
        port=options.port,
        workers=options.workers,
        batch=options.batch,
        token=token,
        limits=Limits(**limits),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    options, words = parse_arguments(arguments)
    with command(options.debug):
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            packages = " ".join(missing).replace("_", "-")
            raise InputError(
                f"serve.py needs {', '.join(missing)}: pip install {packages} "
                "(requirements-serve.txt has the tested versions)"
            )
        from engine.service.server import run  # here: --help is instant
        from utils.run.finding import find_run
        from utils.run.logs import start_logging

        start_logging()
        find_run(options.run, words)
        run(settings_of(options, words))


if __name__ == "__main__":
    main()
