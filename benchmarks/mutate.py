"""Which small changes of a room's code do the room's own tests miss?

    make mutate ROOM=losses
    .venv/bin/python -m benchmarks.mutate losses [losses/triplet.py …]     # of these files alone
    .venv/bin/python -m benchmarks.mutate losses --every 5                 # a fifth of the changes

A room is losses, models/ROOM, utils/ROOM or utils/ROOM.py; its tests are tests/ROOM or
tests/test_ROOM.py. cosmic-ray makes the mutants: an operator, a comparison, a constant + 1, `not`,
`and`, `True`, `break`. Decorators, annotations, `option(…)`, log calls and `raise` are left alone.
Each mutant is tested in a fork of a process that has imported torch already, and lives in its
memory alone: no file is written. numba compiles no function of the room.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import pytest
from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).parent.parent
OPERATORS = [
    "NumberReplacer",
    *(
        f"ReplaceBinaryOperator_{change}"
        for change in (
            "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Mod_Mul Pow_Mul LShift_RShift "
            "RShift_LShift BitAnd_BitOr BitOr_BitAnd BitXor_BitOr"
        ).split()
    ),
    *(
        f"ReplaceComparisonOperator_{change}"
        for change in "Eq_NotEq NotEq_Eq Lt_LtE LtE_Lt Gt_GtE GtE_Gt Is_IsNot IsNot_Is".split()
    ),
    *(f"ReplaceUnaryOperator_Delete_{sign}" for sign in ("USub", "Not", "Invert")),
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
]
# what a star or a bar between two values stands in; elsewhere it is a bare * of a signature, or **
EXPRESSIONS = {"arith_expr", "term", "expr", "and_expr", "xor_expr", "shift_expr", "power"}
SILENT_CALLS = {"option", "debug", "info", "warning"}


Function = tuple[str, int]  # its file and first line


@dataclass(frozen=True)
class Mutant:
    """A file's source with one change, in line `line`."""

    path: Path
    source: str
    line: int
    before: str
    after: str


class MutantImporter(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Imports one file of the repository from a given source, its numba kernels as plain Python."""

    def __init__(self, path: Path, source: str) -> None:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        super().__init__(name, str(path))
        self.source = source

    def find_spec(
        self, fullname: str, path: object, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec")

    def exec_module(self, module: ModuleType) -> None:
        import numba

        numba.config.DISABLE_JIT = True
        super().exec_module(module)
        numba.config.DISABLE_JIT = False


class Calls:
    """pytest plugin: which functions of a room each test calls, by their files and first lines.

    What a fixture calls counts for all tests of the fixture's page: they may share it.
    """

    connection: Connection

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = {str(path) for path in paths}
        self.found: dict[str, set[Function]] = defaultdict(set)
        self.caller = ""

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self.caller = page_of(item.nodeid)
        threading.settrace(self.trace)
        sys.settrace(self.trace)

    def pytest_runtest_call(self, item: pytest.Item) -> None:
        self.caller = item.nodeid

    def pytest_sessionfinish(self) -> None:
        sys.settrace(None)
        self.connection.send(dict(self.found))

    def trace(
        self,
        frame: FrameType,
        event: str,
        argument: object,
    ) -> None:
        code = frame.f_code
        if code.co_filename in self.paths:
            self.found[self.caller].add((code.co_filename, code.co_firstlineno))


class FirstFailure:
    """pytest plugin: only tests that call the changed function; those that failed most often first;
    sends which one failed."""

    connection: Connection

    def __init__(self, wanted: set[str], killers: Counter[str]) -> None:
        self.wanted = wanted
        self.killers = killers

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [i for i in items if {i.nodeid, page_of(i.nodeid)} & self.wanted]
        items.sort(key=lambda item: -self.killers[item.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.connection.send(report.nodeid)


def page_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def silent_ranges(tree: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """What no test has to notice: annotations, decorators, messages, defaults of options."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise):
            yield node
        if isinstance(node, ast.Call) and name_of(node.func) in SILENT_CALLS:
            yield node
        if isinstance(node, ast.keyword) and node.arg == "strict":
            yield node.value
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield from node.decorator_list
        if isinstance(node, ast.FunctionDef) and node.returns is not None:
            yield node.returns
        if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation is not None:
            yield node.annotation


def name_of(function: ast.expr) -> str:
    return ast.unparse(function).rpartition(".")[2]


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every change of a file, in the order of its lines."""
    source = path.read_text()
    silent = [
        ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))
        for node in silent_ranges(ast.parse(source))
    ]
    nodes = list(ast_nodes(get_ast(source)))
    found = []
    for name in OPERATORS:
        operator = plugins.get_operator(f"core/{name}")()
        occurrence = 0
        for node in nodes:
            for index, (start, end) in enumerate(operator.mutation_positions(node)):
                wanted = index == 0 and not any(a <= start and end <= b for a, b in silent)
                if name.startswith("ReplaceBinary"):
                    wanted = wanted and node.parent.type in EXPRESSIONS
                if wanted:
                    found.append((start, name, operator, occurrence))
                occurrence += 1
    lines = source.splitlines()
    for start, _, operator, occurrence in sorted(found, key=lambda entry: entry[:2]):
        changed = mutate_code(source, operator, occurrence)
        with contextlib.suppress(SyntaxError):
            compile(changed, str(path), "exec")
            before = lines[start[0] - 1].strip()
            after = changed.splitlines()[start[0] - 1].strip()
            yield Mutant(path, changed, start[0], before, after)


def run_tests(
    sources: Mapping[Path, str],
    tests: str,
    plugin: Calls | FirstFailure,
) -> None:
    """In a fork: the tests with these files made of these sources; exits by pytest's code."""
    os.setsid()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    sys.meta_path[:0] = [MutantImporter(path, source) for path, source in sources.items()]
    options = ["-x", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist"]
    os._exit(pytest.main([*options, tests], plugins=[plugin]))


def in_fork(
    sources: Mapping[Path, str], tests: str, plugin: Calls | FirstFailure, seconds: float
) -> tuple[bool, Any]:
    """Whether all tests pass within `seconds`, and what the plugin sent: None where nothing."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    plugin.connection = sender
    process = fork.Process(target=run_tests, args=(sources, tests, plugin))
    process.start()
    assert process.pid is not None
    sender.close()
    sent = None
    if receiver.poll(seconds):
        with contextlib.suppress(EOFError):
            sent = receiver.recv()
    process.join(60 if sent else 1)  # what it sent came before its last tidying
    passed = process.exitcode == pytest.ExitCode.OK
    with contextlib.suppress(ProcessLookupError):  # and what the tests have started
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return passed, sent


class Room:
    """The files of a room, and which of its tests call which of their functions."""

    def __init__(self, name: str) -> None:
        places = [ROOT / name, ROOT / "models" / name, ROOT / "utils" / name]
        paths = [path for place in places for path in sorted(place.rglob("*.py"))]
        paths = paths or [ROOT / "utils" / f"{name}.py"]
        if not paths[0].exists():
            sys.exit(f"error: no room {name!r}: expected one such as losses, metrics or batching")
        folder = ROOT / "tests" / name
        self.tests = str(folder if folder.is_dir() else ROOT / "tests" / f"test_{name}.py")
        self.sources = {path: path.read_text() for path in paths}
        self.killers: Counter[str] = Counter()
        began = time.perf_counter()
        passed, self.calls = in_fork(self.sources, self.tests, Calls(paths), 1800)
        if not passed:
            sys.exit(f"error: {self.tests} fails before anything is changed")
        self.seconds = 20 + (time.perf_counter() - began)  # tracing takes longer than a plain run

    def functions_at(self, path: Path, line: int) -> set[Function]:
        """The functions that hold a line; none: it runs at import."""
        found = set()
        for node in ast.walk(ast.parse(self.sources[path])):
            if isinstance(node, ast.FunctionDef):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                if first <= line <= (node.end_lineno or line):
                    found.add((str(path), first))
        return found

    def notices(self, mutant: Mutant) -> bool:
        """Whether a test fails on a mutant, or all together take too long."""
        functions = self.functions_at(mutant.path, mutant.line)
        wanted = {name for name, called in self.calls.items() if functions & called}
        if not functions:
            wanted = {page_of(name) for name in self.calls}
        if not wanted:
            return False
        plugin = FirstFailure(wanted, self.killers)
        sources = {**self.sources, mutant.path: mutant.source}
        passed, killer = in_fork(sources, self.tests, plugin, self.seconds)
        if killer:
            self.killers[killer] += 1
        return not passed


def import_libraries() -> None:
    """Import all that the tests import, then forget the repository's own modules."""
    import tests.preloaded  # noqa: F401

    own = {path.stem for path in ROOT.iterdir()}
    for name in list(sys.modules):
        if name.partition(".")[0] in own:
            del sys.modules[name]
    # pytest collects garbage twice in each fork: what is imported here is never any
    gc.collect()
    gc.freeze()


def main(
    name: str,
    only: Sequence[str],
    every: int,
) -> None:
    """Print the changes that no test of a room notices, and how many are noticed."""
    import_libraries()
    room = Room(name)
    noticed, tried = 0, 0
    for path in room.sources:
        file = str(path.relative_to(ROOT))
        mutants = list(mutants_of(path))[::every] if not only or file in only else []
        survivors = [mutant for mutant in mutants if not room.notices(mutant)]
        for mutant in survivors:
            print(f"{file}:{mutant.line}\n    - {mutant.before}\n    + {mutant.after}")
        noticed += len(mutants) - len(survivors)
        tried += len(mutants)
        print(f"{file}: {len(mutants) - len(survivors)} of {len(mutants)} noticed", flush=True)
    print(f"{name}: {noticed} of {tried} noticed, {100 * noticed / max(tried, 1):.0f} %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("room")
    parser.add_argument("files", nargs="*", help="of these files alone")
    parser.add_argument("--every", type=int, default=1, help="each so many-th change alone")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    main(options.room, options.files, options.every)
