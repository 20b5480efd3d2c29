"""Fingerprints: a hash of the code that a handler is made of, the same in every process that runs the same code.

Of the bytecode and not of a file: what runs is what counts, and a file may be newer than the process. So another minor
version of Python has another fingerprint. It covers the handler and, as far as its code names them, the functions,
classes and constants (NAMES_LIKE_THIS) of its own package, or of the folder it stands in. It does not cover installed
packages, what is imported inside of a function, other variables, and files: for these there is `Cache(version=...)`.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import msgspec

_INSTALLED = frozenset({"site-packages", "dist-packages"})


def has_fingerprint(handler: Callable[..., Any]) -> bool:
    """Whether its code says all that is known of it: objects and their methods also have a state, which does not."""
    if isinstance(handler, partial):
        bound = [*handler.args, *handler.keywords.values()]
        return has_fingerprint(handler.func) and all(_written(value) is not None for value in bound)
    return isinstance(handler, FunctionType)


def fingerprint(handler: Callable[..., Any]) -> str:
    """The SHA-256 of a handler's code. It has to have one."""
    bound: list[object] = []
    while isinstance(handler, partial):
        bound += [_written(handler.args), _written(handler.keywords)]
        handler = handler.func
    assert isinstance(handler, FunctionType), "asked before: has_fingerprint"
    found = _Reached(handler).parts
    return hashlib.sha256(repr([bound, sorted(found.items())]).encode("utf-8", "surrogatepass")).hexdigest()


class _Reached:
    """Everything of its own that a handler's code leads to; what each consists of, by name."""

    def __init__(self, handler: FunctionType) -> None:
        self._home = handler.__module__
        self._folder = _folder(handler.__module__)
        self.parts: dict[str, str] = {}
        self._seen: set[int] = set()
        waiting: list[object] = [handler]
        while waiting:
            waiting += self._look(waiting.pop())

    def _look(self, thing: object) -> Iterator[object]:
        """Note what it consists of; yields what it leads to."""
        if id(thing) in self._seen or not isinstance(thing, FunctionType | type):
            return
        self._seen.add(id(thing))
        # Under which name a file was started is no difference.
        module = "" if thing.__module__ == self._home else thing.__module__
        name = f"{module}:{thing.__qualname__}"
        if isinstance(thing, type):
            yield from self._members(name, thing)
            return
        self.parts[name] = f"{self.parts.get(name, '')}{_told(thing.__code__, thing.__doc__)}"
        self.parts[f"{name}()"] = repr([_written(thing.__defaults__), _written(thing.__kwdefaults__)])
        yield inspect.unwrap(thing)
        for cell in thing.__closure__ or ():
            try:
                inside = cell.cell_contents
            except ValueError:  # it has not been filled yet
                continue
            if self._is_own(inside):
                yield inside
        yield from self._named(set(_names(thing.__code__)), thing.__module__, thing.__globals__, (thing.__module__,))

    def _named(self, names: set[str], module: str, scope: dict[str, Any], through: tuple[str, ...]) -> Iterator[object]:
        """What of these names a module has; those that name a module of ours may be followed by names in that."""
        for name in sorted(names & scope.keys()):
            value = scope[name]
            if isinstance(value, ModuleType):
                inner = value.__name__
                if self._is_ours(inner) and inner not in through:
                    yield from self._named(names, inner, vars(value), (*through, inner))
            elif self._is_own(value):
                yield value
            elif name.isupper():
                self._note(f"{'' if module == self._home else module}:{name}", value)

    def _members(self, name: str, kind: type) -> Iterator[object]:
        self.parts[name] = repr(getattr(kind, "__match_args__", ()))
        yield from filter(self._is_own, kind.__bases__)
        for member, value in sorted(vars(kind).items()):
            if isinstance(value, staticmethod | classmethod):
                yield value.__func__
            elif isinstance(value, property):
                yield from (each for each in (value.fget, value.fset) if each is not None)
            elif isinstance(value, FunctionType):
                yield value
            elif not member.startswith("__"):
                self._note(f"{name}.{member}", value)

    def _note(self, name: str, value: object) -> None:
        written = _written(value)
        if written is not None:
            self.parts[name] = repr(written)

    def _is_own(self, thing: object) -> bool:
        return isinstance(thing, FunctionType | type) and self._is_ours(thing.__module__)

    def _is_ours(self, module: str) -> bool:
        if module == self._home:
            return True
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is None or self._folder is None:
            return False
        path = Path(file)
        return path.is_relative_to(self._folder) and not _INSTALLED & set(path.relative_to(self._folder).parts)


def _folder(module: str) -> Path | None:
    """Where the top of the package stands that a module is of; of a single file its folder."""
    file = getattr(sys.modules.get(module.partition(".")[0]), "__file__", None)
    return Path(file).parent if file is not None else None


def _told(code: CodeType, doc: str | None) -> str:
    """What the code does, whatever its place in a file, its comments and its docstring."""
    constants = [
        "" if place == 0 and doc is not None and value == doc else _constant(value)
        for place, value in enumerate(code.co_consts)
    ]
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    counts = (code.co_argcount, code.co_kwonlyargcount, code.co_posonlyargcount, code.co_flags)
    return repr([code.co_code, code.co_exceptiontable, constants, names, counts])


def _constant(value: object) -> str:
    if isinstance(value, CodeType):
        return _told(value, None)
    if isinstance(value, frozenset):
        # Their order is another in each process.
        return f"{{{sorted(map(_constant, value))}}}"
    return f"({list(map(_constant, value))})" if isinstance(value, tuple) else repr(value)


def _names(code: CodeType) -> Iterator[str]:
    """Every name that the code, or code inside of it, looks up."""
    yield from code.co_names
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _names(value)


def _written(value: object) -> bytes | None:
    """A value as JSON, if it has such a form."""
    try:
        return msgspec.json.encode(value, order="deterministic")
    except (TypeError, ValueError, RecursionError, OverflowError):
        return None
