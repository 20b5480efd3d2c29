"""The child process that writes one test file: `ghost.py MODULE ROOT WORKDIR LIMIT_S MEMORY_BYTES`.

Hypothesis's ghostwriter turns signatures into property tests. Where a parameter has no type hint it leaves a gap,
`st.nothing()`; the gap is filled with the first kind of value that the test accepts when it is tried. Prints one JSON
line: `{"source": ..., "tests": n, "note": ...}` or `{"skipped": ...}`.
"""

import ast
import contextlib
import copy
import importlib
import inspect
import itertools
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import black
import hypothesis
from confinement import Reply, attempt, end_with_owner, guard, limit, take_over_stdout, warm_up
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import HypothesisException
from hypothesis.extra import ghostwriter

Target = Callable[..., Any]
GAP = "st.nothing()"
KINDS = (
    "st.text()",
    "st.floats(min_value=0, max_value=1)",
    "st.integers(min_value=0, max_value=1000)",
    "st.lists(st.floats(allow_nan=False, allow_infinity=False))",
    "st.lists(st.text())",
    "st.binary()",
    "st.dictionaries(st.text(), st.integers())",
)
CANDIDATES = 12
TESTS = 40
TRIAL_S = 0.5
REFUSALS = 10  # of the examples of one trial
ACCEPTED, REJECTED = b"accepted", b"rejected"
# How a function refuses a value, and how one without type hints stumbles over what it was not made for.
REFUSED = (ValueError,)
MISFITS = (ValueError, TypeError, AttributeError)


def main(name: str, root: str, workdir: str, limit_s: str, memory_bytes: str) -> None:
    end_with_owner()
    results = take_over_stdout()
    sys.path[0] = root
    limit(memory_bytes=int(memory_bytes), seconds=float(limit_s))
    warm_up(Path(workdir))
    guard(Path.cwd())
    settings.register_profile(
        "trial",
        max_examples=5,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("trial")
    answer = write(name, deadline=time.monotonic() + float(limit_s) / 2)
    with os.fdopen(results, "w") as stdout:
        print(json.dumps(answer), file=stdout)


def write(name: str, *, deadline: float) -> dict[str, object]:
    """The source of the tests of a module, or why there are none; gaps still open at the deadline are left out."""
    try:
        module = importlib.import_module(name)
    except BaseException as error:  # noqa: BLE001 - a module may raise anything, SystemExit too
        return {"skipped": f"cannot be imported: {type(error).__name__}: {error}"}
    targets = own_callables(module)
    tests = strict_where_typed(targets)
    preamble = with_missing_imports(tests)
    waiting = deque(test for test in tests.body if isinstance(test, ast.FunctionDef))
    written: list[ast.stmt] = []
    unsuited = 0
    while waiting and len(written) < TESTS:
        test = waiting.popleft()
        if (filled := fill(test, preamble, deadline)) is not None:
            written.append(filled)
        elif parts := taken_apart(test, targets):
            waiting.extend(parts)
        else:
            unsuited += 1
    left_out = [f"{unsuited} for which no suitable values were found"] if unsuited else []
    left_out += [f"{len(waiting)} beyond the first {TESTS}"] if waiting else []
    note = f"tests left out: {', '.join(left_out)}" if left_out else ""
    if not written:
        return {"skipped": note or "nothing to test"}
    header = f'"""Property tests of {name}, by the ghostwriter of Hypothesis."""\n\n'
    source = header + ast.unparse(ast.Module([*preamble, *written], type_ignores=[]))
    return {"source": black.format_str(source, mode=black.Mode()), "tests": len(written), "note": note}


def own_callables(module: ModuleType) -> list[Target]:
    """Public functions and classes defined in the module itself: what it imports is tested where it comes from."""
    return [
        value
        for name, value in vars(module).items()
        if not name.startswith("_") and inspect.isroutine(value) | inspect.isclass(value)
        if getattr(value, "__module__", None) == module.__name__
    ]


def taken_apart(test: ast.FunctionDef, targets: list[Target]) -> list[ast.FunctionDef]:
    """A test each for the functions of one that guessed wrong, such as that two of them undo each other."""
    if test.name.startswith("test_fuzz_"):
        return []
    names = {ast.unparse(node.func).rpartition(".")[2] for node in ast.walk(test) if isinstance(node, ast.Call)}
    parts = [strict_where_typed([target], ghostwriter.fuzz) for target in targets if target.__name__ in names]
    return [node for part in parts for node in part.body if isinstance(node, ast.FunctionDef)]


def strict_where_typed(targets: list[Target], writer: Callable[..., str] = ghostwriter.magic) -> ast.Module:
    """The ghostwriter's tests: anything but REFUSED is a failure, or but MISFITS where a gap shows no type hint."""
    strict = {
        test.name: test for test in ghostwrite(targets, REFUSED, writer).body if isinstance(test, ast.FunctionDef)
    }
    tolerant = ghostwrite(targets, MISFITS, writer)
    for position, test in enumerate(tolerant.body):
        if isinstance(test, ast.FunctionDef) and not gaps(test):
            tolerant.body[position] = strict.get(test.name, test)
    return tolerant


def ghostwrite(targets: list[Target], tolerated: tuple[type[Exception], ...], writer: Callable[..., str]) -> ast.Module:
    """Tests for all targets together, so that pairs are found, or for each alone if that is too much for it."""
    with contextlib.suppress(Exception):  # it evaluates type hints, which may raise anything
        return ast.parse(writer(*targets, except_=tolerated, annotate=False))
    tests = ast.Module([], type_ignores=[])
    for target in targets:
        with contextlib.suppress(Exception):
            tests.body += ast.parse(ghostwriter.fuzz(target, except_=tolerated, annotate=False)).body
    return tests


def with_missing_imports(tests: ast.Module) -> list[ast.stmt]:
    """The imports of the tests and those the ghostwriter forgets when it writes a default value by its repr."""
    preamble = [node for node in tests.body if not isinstance(node, ast.FunctionDef)]
    bound = {(name.asname or name.name).partition(".")[0] for node in preamble for name in getattr(node, "names", [])}
    used = {node.id for node in ast.walk(tests) if isinstance(node, ast.Name)}
    missing = sorted((used - bound) & sys.stdlib_module_names)
    return [*(ast.Import([ast.alias(name)]) for name in missing), *preamble]


def gaps(test: ast.FunctionDef) -> int:
    return sum(isinstance(node, ast.Call) and ast.unparse(node) == GAP for node in ast.walk(test))


def fill(test: ast.FunctionDef, preamble: list[ast.stmt], deadline: float) -> ast.FunctionDef | None:
    """The test with values for its gaps, or None when it accepted none of the candidates."""
    for kinds in candidates(gaps(test)):
        if time.monotonic() > deadline:
            return None
        filled = Filler(kinds).visit(copy.deepcopy(test))
        assert isinstance(filled, ast.FunctionDef), "only calls inside the test are replaced"
        source = ast.unparse(ast.Module([*preamble, filled], type_ignores=[]))
        ended = attempt(partial(try_out, source, test.name), limit_s=TRIAL_S)
        if ended.answer != REJECTED:  # one that hangs or ends the process took the values, and is worth a test
            return filled
    return None


def candidates(count: int) -> Iterator[tuple[str, ...]]:
    """All gaps alike first: most functions take one kind of thing; then mixtures, CANDIDATES in all."""
    if not count:
        return iter([()])
    alike = [(kind,) * count for kind in KINDS]
    mixed = (kinds for kinds in itertools.product(KINDS, repeat=count) if len(set(kinds)) > 1)
    return itertools.islice(itertools.chain(alike, mixed), CANDIDATES)


class Filler(ast.NodeTransformer):
    """Puts one strategy after the other into the gaps."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self.kinds = iter(kinds)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if ast.unparse(node) == GAP:
            return ast.parse(next(self.kinds), mode="eval").body
        return self.generic_visit(node)


def try_out(source: str, name: str, reply: Reply) -> None:
    """REJECTED when the test itself is wrong, or once REFUSALS examples did not get past the tolerated errors."""
    refusals = itertools.count(1)

    def reject() -> NoReturn:
        if next(refusals) == REFUSALS:
            reply(REJECTED)
        hypothesis.reject()

    namespace: dict[str, Any] = {}
    try:
        exec(source, namespace)  # noqa: S102 - the test that is being written
    except Exception:  # noqa: BLE001 - the ghostwriter does not check what it writes
        reply(REJECTED)
    namespace["reject"] = reject
    try:
        namespace[name]()
    except (NameError, HypothesisException):
        reply(REJECTED)
    except BaseException:  # noqa: BLE001 - a failure is what tests are for
        reply(ACCEPTED)
    reply(ACCEPTED)


if __name__ == "__main__":
    main(*sys.argv[1:])
