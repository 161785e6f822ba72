"""Public functions of more than eight lines say what they do."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINES = 8


def silent_functions(source, lines=LINES):
    """Names of public functions and methods of a module that are longer and have no docstring."""
    found = []

    def visit(body, prefix):
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                visit(node.body, f"{node.name}.")
            elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                signature = node.body[0].lineno - node.lineno - 1  # lines beyond its first
                long = node.end_lineno - node.lineno - signature >= lines
                if long and not ast.get_docstring(node):
                    found.append(prefix + node.name)

    visit(ast.parse(source).body, "")
    return found


def test_a_function_of_nine_lines_is_long():
    body = "\n".join(["    pass"] * 7)
    assert silent_functions(f"def f():\n{body}\n") == []
    assert silent_functions(f"def f():\n{body}\n    pass\n") == ["f"]
    assert silent_functions(f'def f():\n    "Do it."\n{body}\n') == []
    assert silent_functions(f"def _f():\n{body}\n    pass\n") == []
    inner = "\n".join(["        pass"] * 8)
    assert silent_functions(f"class C:\n    def f(self):\n{inner}\n") == ["C.f"]


def test_longer_public_functions_have_docstrings():
    silent = []
    for room in ("losses", "models", "utils", "engine"):
        for path in sorted((ROOT / room).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            silent += [f"{name}: {function}" for function in silent_functions(path.read_text())]
    assert silent == []
