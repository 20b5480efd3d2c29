"""The fingerprint of a handler: another when its code changes or that of what it calls, and only then."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from bus.cache.fingerprint import fingerprint, has_fingerprint

BEFORE = '''
import functools
from dataclasses import dataclass

LIMIT = 5
PRICES = {"a": 1, "b": 2}
WORDS = ("x", "y")
calls = []

@dataclass
class Box:
    """A box."""
    size: int = 3

    def double(self):
        return self.size * 2

def helper(value):
    return value + 1

def unrelated(value):
    return value + 1

def logged(function):
    @functools.wraps(function)
    def wrapper(value):
        return function(value)
    return wrapper

@logged
def handler(value):
    """What it does."""
    # how it does it
    if value in {"one", "two", "three"}:
        return [helper(each) for each in (LIMIT, Box().double(), PRICES["a"])]
    return None
'''

_modules = count()


def handler_in(text: str) -> Callable[[Any], Any]:
    # A module of a name of its own each time: under which name a file was loaded is no difference.
    module = types.ModuleType(f"handlers{next(_modules)}")
    exec(compile(text, "handlers.py", "exec", dont_inherit=True), vars(module))
    found: Callable[[Any], Any] = module.handler
    return found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return None", "return 1"),
        ("value + 1\n\ndef unrelated", "value + 2\n\ndef unrelated"),
        ("LIMIT = 5", "LIMIT = 6"),
        ('"a": 1', '"a": 2'),
        ("size: int = 3", "size: int = 4"),
        ("self.size * 2", "self.size * 3"),
        ("return function(value)", "return function(value) or 0"),
        ('"one"', '"four"'),
    ],
)
def test_a_change_that_can_change_the_answer_changes_it(old: str, new: str) -> None:
    assert old in BEFORE
    assert fingerprint(handler_in(BEFORE)) != fingerprint(handler_in(BEFORE.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# how it does it", "# how it really does it"),
        ('"""What it does."""', '"""What it really does."""'),
        ("LIMIT = 5", "\n\n\nLIMIT = 5"),
        ("calls = []", "calls = [1]"),
        ("def unrelated(value):\n    return value + 1", "def unrelated(value):\n    return value + 2"),
        ('"a": 1, "b": 2', '"b": 2, "a": 1'),
    ],
)
def test_a_change_beside_it_does_not_change_it(old: str, new: str) -> None:
    assert old in BEFORE
    assert fingerprint(handler_in(BEFORE)) == fingerprint(handler_in(BEFORE.replace(old, new)))


def test_it_is_the_same_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text("def twice(value):\n    return [value, OTHER]\nOTHER = 1\n")
    (tmp_path / "handlers.py").write_text(
        f"{BEFORE}\nimport helpers\nfrom bus.cache.fingerprint import fingerprint\n"
        "def outer(value):\n    return handler(helpers.twice(value))\nprint(fingerprint(outer))\n"
    )

    def printed(*how: str, seed: str) -> str:
        done = subprocess.run(
            [sys.executable, *how],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env={"PYTHONPATH": f"{Path(__file__).parents[2]}:{tmp_path}", "PYTHONHASHSEED": seed},
        )
        return done.stdout

    first = printed("handlers.py", seed="1")
    assert len(first.strip()) == 64
    assert printed("handlers.py", seed="2") == first
    assert printed("-c", "import handlers", seed="3") == first
    (tmp_path / "helpers.py").write_text("def twice(value):\n    return [value, OTHER]\nOTHER = 2\n")
    assert printed("handlers.py", seed="1") != first


def test_modules_that_import_each_other_have_an_end() -> None:
    one, other = types.ModuleType("one"), types.ModuleType("other")
    exec("def handler(value):\n    return other.step(value)", vars(one))
    exec("def step(value):\n    return one.handler(value)", vars(other))
    one.other, other.one = other, one  # type: ignore[attr-defined]
    assert fingerprint(one.handler)


def test_what_is_bound_to_a_partial_counts() -> None:
    def handler(factor: int, value: int) -> int:
        return factor * value

    assert fingerprint(partial(handler, 2)) != fingerprint(partial(handler, 3))
    assert not has_fingerprint(partial(handler, object()))
    assert not has_fingerprint([].append)
