"""Whether a run fits: its plan, what the machine has, and what makes the largest part smaller.

Two more assumptions (`python -m benchmarks.plan` measures them): memory freed in blocks below 32 MB
stays with the process, as glibc's malloc and CUDA's allocator do; with a GPU, what is computed lies
there, and program, token files, matrices and shortlists lie on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from utils.cards import gpu_computes
from utils.memory import host_memory
from utils.plan.parts import GB, MB, Needs, Part, peak
from utils.plan.run_sizes import HERE
from utils.plan.sizes import Assumed

CERTAIN = 0.8  # of what is planned: plans are within a fifth of what is measured


@dataclass(frozen=True)
class Plan:
    """What one process of a run needs.

    Attributes:
        name: of method and data. cuda: whether a GPU computes.
        memory: parts of a byte at least, of the method, the program and its data; none for a
            method without a plan.
    """

    name: str
    processes: int
    cuda: bool
    needs: Needs
    memory: tuple[Part, ...]

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part."""
        return {part.name: int(part.bytes) for part in self.memory}

    @property
    def parameters(self) -> dict[str, int]:
        return self.needs.parameters

    @property
    def exchanged(self) -> dict[str, int]:
        """Bytes sent in a step, by message; nothing is sent by a single process."""
        if self.processes == 1:
            return {}
        return {name: int(sent) for name, sent in self.needs.messages.items() if sent >= 1}

    @property
    def on_host(self) -> list[Part]:
        return [part for part in self.memory if part.on_host or not self.cuda]

    @property
    def on_device(self) -> list[Part]:
        return [part for part in self.memory if self.cuda and not part.on_host]

    @property
    def host(self) -> int:
        return peak(self.on_host)

    @property
    def device(self) -> int:
        return peak(self.on_device)

    @property
    def total(self) -> int:
        """Bytes of the peak, less than the sum of the parts, for not all live at once."""
        return self.host + self.device

    @property
    def shared(self) -> int:
        """Bytes on the host that all processes of a machine hold once."""
        return self.parts.get("token files", 0)


def least(parts: list[Part]) -> int:
    """Bytes that these parts cannot do without."""
    return int(CERTAIN * peak(part for part in parts if part.sure))


def machine(assumed: Assumed = HERE) -> dict[str, int]:
    """Bytes that the machine has.

    memory, swap and available, all within the control group's limit; gpu, that of the smallest or
    the one that was said.
    """
    found = host_memory()
    if assumed.gpu is not None:
        found["gpu"] = int(assumed.gpu * GB)
    elif gpu_computes():
        cards = range(torch.cuda.device_count())
        found["gpu"] = min(torch.cuda.get_device_properties(i).total_memory for i in cards)
    return found


def advice(parts: list[Part]) -> str:
    """The largest part that something makes smaller, and what does."""
    largest = max((part for part in parts if part.smaller), key=lambda part: part.bytes)
    return (
        f"the largest part is '{largest.name}', {size_text(largest.bytes)}; it shrinks with "
        f"{largest.smaller}"
    )


def impossible(
    found: Plan,
    has: Mapping[str, int],
    processes: int | None = None,
) -> str | None:
    """Why the run cannot fit whatever else happens on the machine, or None.

    Args:
        processes: on this machine; None = all.
    """
    if found.cuda:
        parts = found.on_device
        need = least(parts)
        room = has["gpu"]
        where = "a GPU"
    else:
        parts = found.on_host
        need = least(parts) * (found.processes if processes is None else processes)
        room = has["memory"] + has.get("swap", 0)
        where = "this machine"
    if need <= room:
        return None
    return (
        f"{found.name} cannot fit: at least {size_text(need)} are needed and {where} has "
        f"{size_text(room)}; {advice(parts)}"
    )


def describe(found: Plan, has: Mapping[str, int] | None = None) -> str:
    """The plan as tables, what the machine has, and a verdict."""
    if not found.memory:
        return f"{found.name}: {found.needs.left_out}"
    has = machine() if has is None else has
    lines = [f"{found.name}, {found.processes} process{'es' if found.processes > 1 else ''}"]
    lines += _table("parameters", found.parameters, "{:,}".format)
    peak_row = {"peak (not all parts live at once)": found.total}
    lines += _table("memory of a process", found.parts | peak_row, size_text)
    if found.needs.left_out:
        lines.append(f"  left out: {found.needs.left_out}")
    else:
        lines += _table("sent by a process in a step", found.exchanged, size_text)
    return "\n".join([*lines, *_verdict(found, has)])


def _table(
    title: str,
    rows: Mapping[str, int],
    form: Callable[[float], str],
) -> list[str]:
    lines = [f"  {name:<42}{form(value):>16}" for name, value in rows.items()]
    return [f"\n{title}", *(lines or ["  nothing"])]


def _verdict(found: Plan, has: Mapping[str, int]) -> list[str]:
    """What is needed and there, and whether the one is less than the other."""
    need = found.processes * (found.host - found.shared) + found.shared
    lines = [
        f"\nneeded by all processes: {size_text(need)} of memory; this machine has "
        f"{size_text(has['memory'])}, {size_text(has['available'])} of it free"
    ]
    if found.cuda:
        lines.append(f"needed on each GPU: {size_text(found.device)} of {size_text(has['gpu'])}")
    if found.cuda and found.device > has["gpu"]:
        lines.append(f"It does not fit now: {advice(found.on_device)}.")
    elif need > has["available"]:
        lines.append(f"It does not fit now: {advice(found.on_host)}.")
    elif found.needs.left_out:
        lines.append("What was planned fits; what was left out comes on top.")
    else:
        lines.append("It fits.")
    return lines


def size_text(count: float) -> str:
    """Bytes in words."""
    return f"{count / GB:,.2f} GB" if count >= GB else f"{count / MB:,.1f} MB"
