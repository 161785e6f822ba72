from pathlib import Path

import nbformat
from nbclient import NotebookClient

from utils.config.config import to_yaml

ROOT = Path(__file__).parents[2]


def test_the_notebook_runs_from_top_to_bottom(make_config, tmp_path, monkeypatch):
    """With small runs on a small data set instead of the demo's."""
    encoder = make_config(run={"dir": str(tmp_path / "dexml")}, train={"epochs": 8})
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
    for name, made in (("dexml", encoder), ("fusion", config)):
        (tmp_path / f"{name}.yaml").write_text(to_yaml(made))
    monkeypatch.setenv("XMCKIT_NOTEBOOK_CONFIGS", str(tmp_path))
    notebook = nbformat.read(ROOT / "dexml.ipynb", as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 3
    text = "".join(o.get("text", "") for o in outputs)
    assert not [o for o in outputs if o.get("name") == "stderr"]
    assert "'P@1'" in text and "vlc : multimedia player" in text
    assert (config.run_folder / "tst_metrics.json").is_file()


def test_the_notebook_shows_its_outputs():
    """Those of the whole data set: figures, numbers, and no lines that a notebook paints red."""
    cells = nbformat.read(ROOT / "dexml.ipynb", as_version=4).cells
    outputs = [o for cell in cells for o in cell.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 3
    assert {o.get("name", "stdout") for o in outputs} == {"stdout"}
