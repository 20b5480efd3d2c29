"""Where projections are kept, and which are meant: the options that say so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from console.failure import USAGE, Failure

if TYPE_CHECKING:
    from bus.client import Client
    from projections.derived import Derived
    from projections.projection import Projection
    from projections.shelf import Shelf

F = TypeVar("F", bound=Callable[..., Any])


def shelf_option(command: F) -> F:
    """Add `--shelf`."""
    words = "Where rows are kept: sqlite:///FILE or postgresql://...; PHASEBUS_PROJECTIONS unless told."
    return click.option("--shelf", "shelf_url", metavar="URL", help=words)(command)


@contextmanager
def shelf_of(client: Client, url: str | None) -> Iterator[Shelf]:
    """The shelf that is meant: as told, of the settings, or in the folder of the bus that was started here."""
    from bus.address import FILE, folder_of_started
    from projections.shelf import open_shelf

    given = url or client.settings.projections
    if given is None:
        folder = folder_of_started()
        if folder is None:
            raise Failure(USAGE, "where are the rows to be kept?", "--shelf sqlite:///projections.db")
        given = f"sqlite:///{folder / FILE.parent / 'projections.db'}"
    shelf = open_shelf(given)
    try:
        yield shelf
    finally:
        shelf.close()


def chosen(targets: Sequence[str]) -> list[Projection[Any]]:
    """The projections named: those that ship by their name, one's own as FILE.py:NAME. All that ship if none is.

    In place of one that is derived stand those it follows from: it is not kept itself.
    """
    from projections.catalogue import BUILT_IN
    from projections.derived import Derived

    found: dict[str, Projection[Any]] = {}
    for target in targets:
        one = asked(target)
        found |= {each.name: each for each in (one.of if isinstance(one, Derived) else [one])}
    return list((found or BUILT_IN).values())


def asked(target: str) -> Projection[Any] | Derived[Any]:
    """The projection with that name, or in that file."""
    from console.target import load
    from projections.catalogue import BUILT_IN, DERIVED
    from projections.projection import Projection

    if ":" in target:
        return load(target, Projection)
    one = BUILT_IN.get(target) or DERIVED.get(target)
    if one is None:
        known = ", ".join((*BUILT_IN, *DERIVED))
        raise Failure(USAGE, f"there is no projection {target!r}", f"one of {known}; one's own: FILE.py:NAME")
    return one
