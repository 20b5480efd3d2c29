"""Plans as TOML files. What is wrong in one is said with the file and the line."""

from __future__ import annotations

import re
import tomllib
from difflib import get_close_matches
from pathlib import Path

import msgspec

from bus.errors import PlanError
from bus.rules.plan import Phase, Plan

_PATH = re.compile(r"`\$\.phases\[(\d+)\]")
_NAMED = re.compile(r"phase '([^']*)'")
_UNKNOWN = re.compile(r"unknown field `([^`]*)`(?: - at `\$\.phases\[\d+\]`)?$")
_HEADER = re.compile(r"\s*\[\[\s*phases\s*\]\]")


def read_plan(path: Path) -> Plan:
    """The plan in a file. Raises PlanError with `file:line: what is wrong`."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: can't be read: {error}") from None
    try:
        return msgspec.convert(tomllib.loads(text), Plan)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        raise PlanError(f"{path}:{line.group(1) if line else _last(text)}: not TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise PlanError(f"{path}:{_line(text, str(error))}: {error}{_meant(str(error))}") from None


def _line(text: str, problem: str) -> int:
    """Where in the file the problem is: at the phase it names, by its place or by its key."""
    headers = [number for number, line in enumerate(text.splitlines(), 1) if _HEADER.match(line)]
    if place := _PATH.search(problem):
        index = int(place.group(1))
        return headers[index] if index < len(headers) else 1
    if named := _NAMED.search(problem):
        key = re.compile(rf"\s*key\s*=\s*[\"']?{re.escape(named.group(1))}[\"']?\s*(#.*)?$")
        return next((number for number, line in enumerate(text.splitlines(), 1) if key.match(line)), 1)
    return 1


def _meant(problem: str) -> str:
    """The field whose name is like one that there is not."""
    if (unknown := _UNKNOWN.search(problem)) is None:
        return ""
    known = Phase.__struct_fields__ if "$.phases" in problem else Plan.__struct_fields__
    near = get_close_matches(unknown.group(1), known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"


def _last(text: str) -> int:
    return text.count("\n") + 1
