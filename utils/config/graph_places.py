"""Where the steps of elias_utils.py leave a graph, and the run that needs it looks for it."""

from __future__ import annotations

from pathlib import Path


def cluster_file(run_folder: Path) -> Path:
    """The clusters of a run's labels, beside its folder: there before the run is."""
    return run_folder.with_name(f"{run_folder.name}.cluster_A.npz")


def approx_file(run_folder: Path) -> Path:
    """The labels that a run's clusters attract, for runs that start from that one."""
    return run_folder / "approx_A.npz"
