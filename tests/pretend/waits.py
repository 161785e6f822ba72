"""Where the host would wait for the GPU."""

import sys
from collections import Counter
from pathlib import Path
from types import FrameType

ROOT = str(Path(__file__).parents[2])
READ = "read"  # the host needs a value or a size: a sync
UPLOAD = "upload"  # a copy from memory that is not pinned, or that is waited for: a sync as well


class Waits(Counter[tuple[str, str]]):
    """How often, by (READ or UPLOAD, operation and place)."""

    def add(self, kind: str, operation: str) -> None:
        self[kind, f"{operation} in {place()}"] += 1

    def count(self, kind: str) -> int:
        return sum(number for (own, _), number in self.items() if own == kind)


def place() -> str:
    """File and function of the project that is at work, and the library that it called."""
    frame: FrameType | None = sys._getframe(1)
    library = ""
    while frame is not None:
        name = frame.f_code.co_filename
        if "site-packages" in name:
            package = name.split("site-packages/")[1].partition("/")[0]
            if package not in ("torch", "accelerate"):
                library = f" by {package}"
        elif name.startswith(ROOT) and not name.startswith(f"{ROOT}/tests/pretend"):
            return f"{name[len(ROOT) + 1 :]}:{frame.f_code.co_name}{library}"
        frame = frame.f_back
    return "?"
