"""The imports between rooms go one way: no cycle, nothing upward.

A node of the graph is a room (`models/dual/`, `utils/data/`, `losses/`), a page beside the rooms
(`utils/sparse.py`, `models/scores.py`) or a command. Imports inside functions count; those under
`if TYPE_CHECKING:` and names that the registry imports when they are asked for do not.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = ("train", "eval", "predict", "elias_utils", "serve", "xmckit")
# from the lowest to the highest; a node imports from its own layer and from those below
LAYERS = (
    ("losses",),
    ("utils",),
    ("models", "models.encoders", "models.batching"),  # and the pages that no layer names
    ("models.dual", "models.classifiers", "models.trees"),
    ("models.elias",),
    ("models.fusion",),
    ("engine",),
    COMMANDS,  # and every __main__
)
# What is not yet so: "importer -> imported". This list may only become shorter.
VIOLATIONS = {}

Edges = dict[tuple[str, str], list[str]]  # (importer, imported) -> files and lines


def modules() -> dict[str, Path]:
    """Find the modules of the product by their dotted names."""
    folders = [ROOT / name for name in ("losses", "models", "utils", "engine")]
    paths = [ROOT / f"{name}.py" for name in COMMANDS]
    paths += [path for folder in folders for path in folder.rglob("*.py")]
    found = {}
    for path in paths:
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if path.exists():
            found[name] = path
    return found


def node_of(module: str) -> str:
    """Name the room, page or command that a module belongs to."""
    parts = module.split(".")
    if parts[0] == "losses":
        return "losses"
    if parts[-1] == "__main__":
        return module
    return ".".join(parts[:2])


def layer_of(node: str) -> int:
    """Number of the layer of a node, the lowest being 0."""
    if node.endswith("__main__"):
        return len(LAYERS) - 1
    for name in (node, node.partition(".")[0]):
        for number, layer in enumerate(LAYERS):
            if name in layer:
                return number
    raise AssertionError(f"{node} stands in no layer")


def counted(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports below a node of a syntax tree but those for types alone."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from counted(other)
        else:
            yield from counted(child)


def imported(statement: ast.Import | ast.ImportFrom, known: dict[str, Path]) -> set[str]:
    """Dotted names that a statement imports: of modules where they are known, else of packages."""
    if isinstance(statement, ast.Import):
        return {alias.name for alias in statement.names}
    assert statement.module and not statement.level, "imports are absolute"
    names = {f"{statement.module}.{alias.name}" for alias in statement.names}
    return {name if name in known else statement.module for name in names}


@functools.cache
def parsed(path: Path) -> ast.Module:
    """Parse a file, once for all tests."""
    return ast.parse(path.read_text())


def imports_of_files() -> Iterator[tuple[str, str, str]]:
    """Yield (module, imported name, file and line) of every import of the product."""
    known = modules()
    for module, path in known.items():
        for statement in counted(parsed(path)):
            place = f"{path.relative_to(ROOT)}:{statement.lineno}"
            for name in imported(statement, known):
                yield module, name, place


@pytest.fixture(scope="module")
def edges() -> Edges:
    known = modules()
    found: Edges = {}
    for module, name, place in imports_of_files():
        pair = (node_of(module), node_of(name))
        if name in known and pair[0] != pair[1]:
            found.setdefault(pair, []).append(place)
    return found


def reachable(start: str, edges: set[tuple[str, str]]) -> set[str]:
    """Nodes that imports lead to from a node."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        node = waiting.pop()
        following = {target for source, target in edges if source == node} - found
        found |= following
        waiting += following
    return found


def in_cycles(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Edges from whose end a way leads back to their begin."""
    nodes = {node for edge in edges for node in edge}
    reached = {node: reachable(node, edges) for node in nodes}
    return {(source, target) for source, target in edges if source in reached[target]}


def upward(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Edges that lead to a higher layer."""
    return {edge for edge in edges if layer_of(edge[0]) < layer_of(edge[1])}


def told(edges: set[tuple[str, str]], places: Edges) -> str:
    """Edges with the lines that draw them."""
    lines = [f"{' -> '.join(edge)}: {', '.join(places[edge])}" for edge in sorted(edges)]
    return "\n" + "\n".join(lines)


def listed() -> set[tuple[str, str]]:
    """The violations that are known, as edges."""
    pairs = (violation.partition(" -> ") for violation in VIOLATIONS)
    return {(importer, target) for importer, _, target in pairs}


def test_no_import_leads_upward(edges):
    found = upward(set(edges)) - listed()
    assert not found, told(found, edges)


def test_rooms_have_no_cycle(edges):
    found = in_cycles(set(edges) - listed())
    assert not found, told(found, edges)


def test_listed_violations_still_exist(edges):
    gone = listed() - upward(set(edges)) - in_cycles(set(edges))
    assert not gone, f"no longer needed in VIOLATIONS: {sorted(gone)}"


@pytest.mark.parametrize("room", ["losses", "models", "utils"])
def test_rooms_import_no_command(room):
    found = [
        place
        for module, name, place in imports_of_files()
        if module.partition(".")[0] == room
        and not module.endswith("__main__")
        and (name in COMMANDS or name.endswith("__main__"))
    ]
    assert not found


def test_losses_import_torch_alone():
    allowed = {"torch", "losses", *sys.stdlib_module_names}
    found = [
        f"{place} {name}"
        for module, name, place in imports_of_files()
        if node_of(module) == "losses" and name.partition(".")[0] not in allowed
    ]
    assert not found
