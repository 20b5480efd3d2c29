"""The checks that need no server: style, types, import contracts, and what must not be in a file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_CODE = ["bus", "agents", "projections", "console", "benchmarks", "examples", "tests"]


def _run(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


def test_the_code_is_clean_and_formatted() -> None:
    _run("ruff", "check", *_CODE)
    _run("ruff", "format", "--check", *_CODE)


def test_every_type_holds() -> None:
    _run("mypy")


@pytest.mark.parametrize("package", ["bus", "agents", "projections", "console"])
def test_no_type_check_is_switched_off(package: str) -> None:
    found = [str(path) for path in (ROOT / package).rglob("*.py") if "type: ignore" in path.read_text()]
    assert not found


def test_the_public_names_are_sorted_and_there() -> None:
    import bus

    assert bus.__all__ == sorted(bus.__all__, key=lambda name: (name[0].islower(), name))
    assert all(hasattr(bus, name) for name in bus.__all__)


def test_no_file_names_a_registry_or_this_machine() -> None:
    # Spelled in two halves, so that this file does not find itself.
    forbidden = re.compile("pypi" + r"\.org|files\.pythonhosted|registry\.npmjs|deb\.debian|/" + "work/|/" + "root/")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    found = [
        name
        for name in tracked
        if (ROOT / name).is_file() and forbidden.search((ROOT / name).read_text("utf-8", "replace"))
    ]
    assert not found
