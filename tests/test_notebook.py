from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.setenv("XMCKIT_NOTEBOOK_RUN", str(tmp_path / "run"))
    notebook = nbformat.read(ROOT / "dexml.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)      # none are tracked
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    text = "".join(o.get("text", "") for o in outputs)
    assert "'P@1'" in text
    assert (tmp_path / "run" / "tst_metrics.json").is_file()
