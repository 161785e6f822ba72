"""The code of README and docs: what is a block, and how its commands are run on small data.

```sh        run, command by command
```python    run, all of a page as one program
```bash      a script for another machine: its syntax is checked
```          an output, a layout, a formula
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.commands import ROOT

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
# first words of commands that a test cannot run, and who does
NOT_RUN = {
    "make": "runs in CI, or sets up an environment",
    "pip": "sets up an environment",
    "source": "enters an environment",
    "jupyter": "opens a browser; the notebook has a test of its own",
    "docker": "is not here",
    "curl": "asks a service; tests/service asks it the same",
    "kill": "is for a running service; tests/service sends the signals",
    "ln": "is for a running service",
    "scp": "is for another machine",
    "XMCKIT_TOKEN=secret": "starts a service that stays; tests/service has tokens",
}

# modules whose work takes minutes, and who runs them
NOT_RUN_MODULES = {
    "benchmarks.gpu": "tests/commands/test_gpu_benchmark.py",
    "benchmarks.compare": "tests/commands/test_compare_benchmark.py",
    "benchmarks.recipes": "tests/config/test_recipes.py",
    "benchmarks.accuracy": "makes the tables",
}
OWN_TEST = ("docs/extending.md",)  # pages of one program each: tests/test_extending.py


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: its first word; empty for outputs.
        line: of its first line.
    """

    language: str
    text: str
    line: int


def pages() -> list[Path]:
    """README and all pages of docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def is_run(words: Sequence[str]) -> bool:
    """Whether a command is run as the page has it."""
    return words[0] not in NOT_RUN and not set(words) & NOT_RUN_MODULES.keys()


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        indent, language, code = found.groups()
        lines = [line.removeprefix(indent) for line in code.splitlines()]
        yield Block(language, "\n".join(lines), text.count("\n", 0, found.start()) + 2)


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command of a shell block, comments left out."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words
