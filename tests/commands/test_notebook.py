from pathlib import Path

import nbformat
from nbclient import NotebookClient

from utils.config.config import to_yaml

ROOT = Path(__file__).parents[2]


def test_the_notebook_runs_from_top_to_bottom(make_config, tmp_path, monkeypatch):
    """With a small fusion on a small data set instead of the demo's."""
    config = make_config(
        method={"name": "fusion"},
        stages=[
            {"name": "encoder", "method": {"name": "dexml"}, "train": {"epochs": 8}},
            {
                "name": "tree",
                "run": {"start_from": None},
                "method": {"name": "xr-linear", "max_leaf": 4, "splits": 2},
            },
            {
                "name": "fusion",
                "run": {"start_from": None},
                "method": {
                    "name": "fusion",
                    "fuser": "linear",
                    "members": {"encoder": "stage:encoder", "tree": "stage:tree"},
                },
            },
        ],
    )
    (tmp_path / "fusion.yaml").write_text(to_yaml(config))
    monkeypatch.setenv("XMCKIT_NOTEBOOK_CONFIG", str(tmp_path / "fusion.yaml"))
    notebook = nbformat.read(ROOT / "dexml.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # none are tracked
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 3
    text = "".join(o.get("text", "") for o in outputs)
    assert "'P@1'" in text and "vlc : multimedia player" in text
    assert (config.run_folder / "tst_metrics.json").is_file()
