"""The package `xmckit` that `pip install .` makes: its modules, and that it works where nothing
else of the repository is."""

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from setuptools.errors import SetupError

import setup
import xmckit

ROOT = Path(__file__).parent.parent
HERE = Path("utils/page.py")
BESIDE = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "xmckit.py")


# -------------------------------- what is rewritten


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from utils.files import a", "from xmckit.utils.files import a"),
        ("from utils import (\n    a,\n    b,\n)", "from xmckit.utils import (\n    a,\n    b,\n)"),
        ("def f():\n    from train import fit", "def f():\n    from xmckit.train import fit"),
        ("é = 1; from losses import a", "é = 1; from xmckit.losses import a"),
        ("import train", "from xmckit import train"),
        ("import os, eval, numpy as np", "import os; from xmckit import eval; import numpy as np"),
        ("import models.scores as s", "import xmckit.models.scores as s"),
        ("from utilsx.y import a", "from utilsx.y import a"),
        ("from torch.utils import data", "from torch.utils import data"),
        ("from . import utils", "from . import utils"),
        ('M = "models.dual.dexml:Dexml"', 'M = "xmckit.models.dual.dexml:Dexml"'),
        ("M = ('-m', 'engine.conformance')", "M = ('-m', 'xmckit.engine.conformance')"),
        ('M = "models.nowhere:X"', 'M = "models.nowhere:X"'),
        ('M = "eval.top_k"', 'M = "eval.top_k"'),
        ('f"{x}: python train.py {y}"', 'f"{x}: xmckit train {y}"'),
        ('"go on with train.py --resume"', '"go on with xmckit train --resume"'),
        ('"a/train.py or retrain.py"', '"a/train.py or retrain.py"'),
        ('"""\n    python -m utils.prepare x"""', '"""\n    python -m xmckit.utils.prepare x"""'),
        ('"python -m benchmarks.plan"', '"python -m benchmarks.plan"'),
        ('"accelerate launch -n 2 eval.py R"', '"accelerate launch -n 2 -m xmckit.eval R"'),
        ('"pip install -r requirements-serve.txt"', '"pip install xmckit[serve]"'),
    ],
)
def test_a_module_is_rewritten(before, after):
    assert setup.rewritten(before, HERE) == after
    assert setup.rewritten(f"{before}\n", HERE) == f"{after}\n"


def test_an_import_that_binds_a_root_is_refused():
    with pytest.raises(SetupError, match=r"utils/page\.py: line 2: `import utils\.files` binds"):
        setup.rewritten("import os\nimport utils.files\n", HERE)


# -------------------------------- what is built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from an sdist of a copy of the repository's files."""
    folder = tmp_path_factory.mktemp("sources")
    files = [path.relative_to(ROOT) for path in setup.package_files().values()]
    for name in {*map(str, files), *BESIDE}:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    build = ["-m", "build", "--no-isolation", "--skip-dependency-check", str(folder)]
    told = subprocess.run([sys.executable, *build], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr
    (path,) = (folder / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with the wheel, which finds the packages of this one's; its folder."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = ["-m", "pip", "--python", str(python), "install", "--no-deps", "--no-compile", "-q"]
    subprocess.run([sys.executable, *pip, "--no-index", str(wheel)], check=True)
    return folder


def test_no_import_of_a_root_is_left(wheel):
    count = 0
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not name.endswith(".py"):
                continue
            assert name.startswith("xmckit/")
            for node in ast.walk(ast.parse(archive.read(name))):
                modules = []
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    modules = [node.module]
                roots = {module.partition(".")[0] for module in modules}
                assert not roots & set(setup.ROOTS), (name, modules)
                count += "xmckit" in roots
    assert count > 1000


def test_the_wheel_has_all_that_is_needed(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = [name for name in names if name.endswith("METADATA")]
        told = archive.read(metadata).decode()
        pages = {name: archive.read(name).decode() for name in names if name.endswith(".py")}
    assert f"\nVersion: {xmckit.__version__}\n" in told
    assert {f"xmckit/{name}.py" for name in ("train", "eval", "predict", "serve")} <= names
    assert "xmckit/configs/presets/best.yaml" in names
    assert "xmckit/engine/service/page.html" in names
    pages_here = [path for room in setup.ROOMS for path in (ROOT / room).rglob("*.*")]
    here = [path for path in pages_here if path.is_file() and "__pycache__" not in path.parts]
    assert {f"xmckit/{path.relative_to(ROOT)}" for path in here} <= names
    assert not [name for name in names if "tests/" in name or "__pycache__" in name]
    assert "xmckit.models.dual.dexml:Dexml" in pages["xmckit/utils/config/methods.py"]


# All in one process: torch is imported once. Kernels stay Python, compiling them would take longer;
# those of trees cannot.
PROGRAM = """
import contextlib, importlib, io, json, pkgutil, sys
from pathlib import Path

import xmckit

assert "site-packages" in xmckit.__file__, xmckit.__file__
for module in pkgutil.walk_packages(xmckit.__path__, "xmckit."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert not {"utils", "models", "losses", "engine", "train"} & set(sys.modules)

texts = ["a red fox", "a blue sky", "a red sky", "a blue fox"] * 5
labels = [["red"], ["blue"], ["red"], ["blue"]] * 5
config = {
    "method": {"name": "dexml"},
    "encoder": {"name": "bag", "init": sys.argv[1]},
    "train": {"epochs": 3, "batch_size": 4},
    "optim": {"lr": 0.05},
}
model = xmckit.XMC(config, folder="kept").fit(texts, labels)
answer = model.predict("the red sky", k=1)
assert xmckit.XMC.load(model.save("saved")).predict("the red sky", k=1) == answer

Path("mine.yaml").write_text(json.dumps(config))
words = ["--data.root", "kept/data", "--data.name", "texts", "--run.dir", "run"]


def command(*words):
    with contextlib.redirect_stdout(io.StringIO()) as told:
        xmckit.main(words)
    return told.getvalue()


assert command("train", "mine.yaml", *words, "--run.tensorboard", "false") == "run: run\\n"
told = json.loads(command("predict", "run", "--text", "the red sky", "--k", "1"))
command("eval", "run")

from fastapi.testclient import TestClient
from xmckit.engine.service.app import create_app
from xmckit.engine.service.service import Service
from xmckit.engine.service.settings import Settings

service = Service(Settings("saved"))
with TestClient(create_app(service)) as client:
    reply = client.post("/predict", json={"texts": ["the red sky"], "k": 1}).json()
    page = client.get("/").text
service.close()
facts = json.loads(Path("run/environment.json").read_text())
print(json.dumps([answer, told, reply, "<html" in page, facts["commit"], facts["versions"]]))
"""


def test_an_installed_package_works_outside_of_the_repository(installed, small_encoder, tmp_path):
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    environment.pop("PYTHONPATH", None)
    told = subprocess.run(
        [str(installed / "bin" / "python"), "-c", PROGRAM, small_encoder],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    answer, predicted, reply, has_page, commit, versions = json.loads(told.stdout.splitlines()[-1])
    assert answer[0] in ("red", "blue")
    assert predicted["labels"][0]["text"] == answer[0]
    assert answer[0] in json.dumps(reply)
    assert has_page
    assert commit is None
    assert versions["xmckit"] == xmckit.__version__


def test_the_command_is_installed(installed, tmp_path):
    for command in (["bin/xmckit"], ["bin/python", "-m", "xmckit"]):
        words = [str(installed / command[0]), *command[1:], "--version"]
        told = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert told.stdout == f"xmckit {xmckit.__version__}\n", told.stderr
