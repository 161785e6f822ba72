"""Memory of the machine, within the limit of the control group that this process runs in."""

from __future__ import annotations

from pathlib import Path

import psutil

GROUP = Path("/sys/fs/cgroup")
FILES = {  # of version 2 and version 1: the limit, what is used, and what of that is cache of files
    ".": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def host_memory() -> dict[str, int]:
    """Return bytes: memory, swap, available (all within the control group's limit)."""
    machine = psutil.virtual_memory()
    memory = machine.total
    swap = psutil.swap_memory().total
    available = machine.available
    for folder, (limit, used, cache) in FILES.items():
        path = GROUP / folder / limit
        text = path.read_text().strip() if path.is_file() else "max"
        if text.isdigit() and int(text) < memory:
            memory = int(text)
            swap = 0
            taken = int(path.with_name(used).read_text())
            taken -= _file_cache(path.with_name("memory.stat"), cache)
            available = min(available, max(memory - taken, 0))
    return {"memory": memory, "swap": swap, "available": available}


def _file_cache(path: Path, name: str) -> int:
    """Bytes of files that the group has read and can drop at once, which count as used."""
    if not path.is_file():
        return 0
    lines = path.read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.split()[0] == name)
