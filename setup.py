"""`pip install .`: one package, `xmckit`, made of the folders and commands that lie here.

In the repository modules are called `utils.files` or `train`; such names do not belong to one
project among all that are installed. In the package they are `xmckit.utils.files` and
`xmckit.train`: the build writes copies whose imports, names of modules in strings and commands in
messages are those of the package, as pip does for what it vendors. Nothing here is changed.
"""

from __future__ import annotations

import ast
import io
import re
import shutil
import tokenize
from collections.abc import Iterator
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent
PACKAGE = "xmckit"
ROOMS = ("losses", "models", "utils", "engine")
SCRIPTS = ("train", "eval", "predict", "serve", "elias_utils")
CONFIGS = "configs/presets"
ROOTS = (*ROOMS, *SCRIPTS)  # what an import of the repository begins with
LEFT_OUT = "__pycache__"
MAIN = f'''"""`python -m {PACKAGE}`."""

from {PACKAGE} import main

if __name__ == "__main__":
    main()
'''

Edit = tuple[int, int, str]  # (first character, character behind the last, what stands there then)

# 'models.dual.dexml:Dexml' or 'engine.conformance', all that a string holds
_MODULE = re.compile(rf"""^[rRuUbB]?(['"])(?P<name>(?:{"|".join(ROOMS)})(?:\.\w+)+)(?::\w+)?\1$""")
_LAUNCH = re.compile(rf"(accelerate launch.*?)\b({'|'.join(SCRIPTS)})\.py\b")
_SCRIPT = re.compile(rf"(?:\bpython )?(?<![\w/.])({'|'.join(SCRIPTS)})\.py\b")
_EXTRA = re.compile(r"\bpip install -r requirements-(\w+)\.txt")
_DASH_M = re.compile(rf"\bpython -m ((?:{'|'.join(ROOMS)})\b[\w.]*)")


def rewritten(source: str, path: Path) -> str:
    """A module of the repository as one of the package.

    Args:
        path: of the module, relative to the repository.
    Raises:
        SetupError: an import that cannot be written for the package.
    """
    edits = [*_imports(source, path), *_strings(source, path)]
    for first, behind, text in sorted(edits, reverse=True):
        source = source[:first] + text + source[behind:]
    return source


# -------------------------------- imports


def _imports(source: str, path: Path) -> Iterator[Edit]:
    """What imports of the repository's modules become."""
    starts = _line_starts(source)
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        before = lines[node.lineno - 1].encode()[: node.col_offset].decode()
        first = starts[node.lineno - 1] + len(before)
        if isinstance(node, ast.ImportFrom):
            if node.level == 0 and node.module is not None and _is_ours(node.module):
                at = source.index(node.module, first)
                yield at, at, f"{PACKAGE}."
        elif any(_is_ours(alias.name) for alias in node.names):
            assert node.end_lineno is not None and node.end_col_offset is not None
            end = lines[node.end_lineno - 1].encode()[: node.end_col_offset].decode()
            yield first, starts[node.end_lineno - 1] + len(end), _import(node, path)


def _import(node: ast.Import, path: Path) -> str:
    """`import train`, `import utils.files as files` for the package."""
    written = []
    for alias in node.names:
        name = alias.name
        if not _is_ours(name):
            written.append(f"import {name} as {alias.asname}" if alias.asname else f"import {name}")
        elif alias.asname:
            written.append(f"import {PACKAGE}.{name} as {alias.asname}")
        elif "." not in name:
            written.append(f"from {PACKAGE} import {name}")
        else:
            raise SetupError(
                f"{path}: line {node.lineno}: `import {name}` binds `{name.partition('.')[0]}`, "
                f"which is {PACKAGE}.{name.partition('.')[0]} in the package; write "
                f"`from ... import ...`"
            )
    return "; ".join(written)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ROOTS


# -------------------------------- strings


def _strings(source: str, path: Path) -> Iterator[Edit]:
    """What strings become that name a module, or a command that a user is to type."""
    starts = _line_starts(source)
    kinds = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in kinds:
            continue
        first = starts[token.start[0] - 1] + token.start[1]
        behind = starts[token.end[0] - 1] + token.end[1]
        text = source[first:behind]
        module = _MODULE.match(text)
        if module is None:
            changed = commands_renamed(text)
        elif path.name != f"{PACKAGE}.py" and _is_module(module["name"]):  # it looks for itself
            at = module.start("name")
            changed = f"{text[:at]}{PACKAGE}.{text[at:]}"
        else:
            changed = text
        if changed != text:
            yield first, behind, changed


def commands_renamed(text: str) -> str:
    """Text with the commands of the repository as those of the package."""
    text = _LAUNCH.sub(rf"\1-m {PACKAGE}.\2", text)
    text = _SCRIPT.sub(rf"{PACKAGE} \1", text)
    text = _EXTRA.sub(rf"pip install {PACKAGE}[\1]", text)
    return _DASH_M.sub(rf"python -m {PACKAGE}.\1", text)


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _line_starts(source: str) -> list[int]:
    """Where each line begins; the end of the source after the last."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts


# -------------------------------- the package


def package_files() -> dict[str, Path]:
    """All files of the package by their names in it."""
    files = {f"{name}.py": ROOT / f"{name}.py" for name in SCRIPTS}
    files["__init__.py"] = ROOT / f"{PACKAGE}.py"
    for folder in (*ROOMS, CONFIGS):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and LEFT_OUT not in path.parts:
                files[path.relative_to(ROOT).as_posix()] = path
    return files


def write_package(folder: Path) -> None:
    """Write the package to `folder`, in place of what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, source in package_files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".py":
            text = rewritten(source.read_text(encoding="utf-8"), source.relative_to(ROOT))
            path.write_text(text, encoding="utf-8")
        elif path.suffix == ".yaml":
            path.write_text(commands_renamed(source.read_text(encoding="utf-8")), encoding="utf-8")
        else:
            shutil.copyfile(source, path)
    (folder / "__main__.py").write_text(MAIN)


class BuildPackage(build_py):
    """Writes the package; an editable installation uses the repository as it is."""

    def run(self) -> None:
        if not self.editable_mode:
            write_package(Path(self.build_lib) / PACKAGE)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        if self.editable_mode:
            return []
        folder = Path(self.build_lib) / PACKAGE
        return [str(folder / name) for name in (*package_files(), "__main__.py")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return [path.relative_to(ROOT).as_posix() for path in package_files().values()]


class EditableInstallation(editable_wheel):
    """Puts the repository on the path of imports."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.mode = "compat"


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildPackage, "editable_wheel": EditableInstallation})
