"""An object of the user's own code, named on the command line: FILE.py:NAME or package.module:NAME."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TypeVar

import click

from console.failure import USAGE, Failure

T = TypeVar("T")


def load(target: str, kind: type[T]) -> T:
    """The `kind` that `target` names; with `object`, whatever it names.

    Its folder, or the current one for a module, is importable from then on.

    Raises Failure: no such file, module or name; or its import failed, and then its traceback has been printed.
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise Failure(USAGE, f"{target!r} names no {kind.__name__}: write FILE.py:NAME or package.module:NAME")
    module = _from_file(Path(place)) if place.endswith(".py") else _from_path(place)
    found = getattr(module, name, None)
    if found is not None and isinstance(found, kind):
        return found
    others = [other for other, value in vars(module).items() if isinstance(value, kind)]
    what = f"{place} has no {name!r}" if found is None else f"{target} is of type {type(found).__name__}"
    hint = f"{place}:{others[0]}" if others else f"give {place} an object of type {kind.__name__} at its top level"
    if kind is object:
        raise Failure(USAGE, what)
    raise Failure(USAGE, f"{what}, not {_article(kind)}" if found is not None else what, hint)


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise Failure(USAGE, f"there is no file {path}")
    for name in (path.stem, f"phasebus_target_{path.stem}"):
        # One file may hold several agents, and what it registers is there once.
        if getattr(sys.modules.get(name), "__file__", None) == str(path.resolve()):
            return sys.modules[name]
    sys.path.insert(0, str(path.resolve().parent))
    # Its own name, as an import by a sibling would give it; not that of a module which is there already.
    name = path.stem if path.stem not in sys.modules else f"phasebus_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None, "a file that ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # noqa: BLE001 - it is the user's code
        del sys.modules[name]
        raise _broken(str(path), error) from None
    return module


def _from_path(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            hint = f"if it is a file: {name.replace('.', '/')}.py:NAME" if Path(f"{name}.py").exists() else ""
            raise Failure(USAGE, f"there is no module {error.name!r} here or installed", hint) from None
        raise _broken(name, error) from None
    except Exception as error:  # noqa: BLE001 - it is the user's code
        raise _broken(name, error) from None


def _broken(place: str, error: Exception) -> Failure:
    """The user's own traceback, from where their code begins."""
    click.echo(
        "".join(traceback.format_exception(type(error), error, _theirs(error.__traceback__))), err=True, nl=False
    )
    return Failure(USAGE, f"{place} could not be imported: {type(error).__name__}: {error}")


def _theirs(trace: TracebackType | None) -> TracebackType | None:
    """Without the frames of this module and of the import system."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith((__file__, "<frozen importlib")):
        trace = trace.tb_next
    if trace is not None and trace.tb_frame.f_code.co_filename == importlib.__file__:
        return _theirs(trace.tb_next)
    return trace


def _article(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"
