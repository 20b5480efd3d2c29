"""Measures one module from its syntax tree: size, branches, documentation, annotations, and whether a test names it."""

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from contracts import Measure, Measured
from discovery import is_test, parse

Function = ast.FunctionDef | ast.AsyncFunctionDef
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case, ast.comprehension)
TEST_FILES = 500


def measure(query: Measure) -> Measured:
    """A module that cannot be parsed is measured as its problem alone."""
    module = query.module
    if module.problem:
        return Measured(module.name, problem=module.problem)
    file = Path(module.path)
    tree = parse(file)
    functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
    public = [function for function in functions if not function.name.startswith("_")]
    return Measured(
        module=module.name,
        lines=len(file.read_bytes().splitlines()),
        branches=branches(tree),
        functions=len(functions),
        undocumented=sum(ast.get_docstring(function) is None for function in public),
        typed_share=typed_share(functions),
        untested=not is_mentioned(module.name, test_files(Path(query.root), module.name.partition(".")[0])),
    )


def branches(tree: ast.AST) -> int:
    """Places where the path forks: statements and comprehensions once, `a and b and c` twice."""
    return sum(
        len(node.values) - 1 if isinstance(node, ast.BoolOp) else isinstance(node, BRANCHES) for node in ast.walk(tree)
    )


def typed_share(functions: list[Function]) -> float:
    """The annotated part of all parameters and returns, 0 to 1; `self` and `cls` are not asked for."""
    slots = [slot for function in functions for slot in annotations(function)]
    return round(sum(slot is not None for slot in slots) / len(slots), 3) if slots else 0.0


def annotations(function: Function) -> Iterator[ast.expr | None]:
    yield function.returns
    arguments = function.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
        if argument is not None and argument.arg not in ("self", "cls"):
            yield argument.annotation


def test_files(root: Path, package: str) -> list[Path]:
    """Test files in the package, beside it, and in `tests` or `test` beside it or above; at most TEST_FILES."""
    beside = (folder / name for folder in (root, root.parent) for name in ("tests", "test"))
    found = itertools.chain(root.glob("*.py"), *(folder.rglob("*.py") for folder in (root / package, *beside)))
    return list(itertools.islice(filter(is_test, found), TEST_FILES))


def is_mentioned(module: str, tests: list[Path]) -> bool:
    """Whether any test file holds the module's full name, or `from package import name`.

    A mention is not coverage: this finds modules that no test can have reached on purpose, and nothing more.
    """
    package, _, name = module.rpartition(".")
    pattern = rf"\b{re.escape(module)}\b"
    if package:
        pattern += rf"|from\s+{re.escape(package)}\s+import\b[^#]*?\b{re.escape(name)}\b"
    texts = (file.read_text(encoding="utf-8", errors="replace") for file in tests)
    return any(name in text and re.search(pattern, text) for text in texts)
