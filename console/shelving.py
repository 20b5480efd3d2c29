"""Where projections are kept, and which are meant: the options that say so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from console.failure import USAGE, Failure

if TYPE_CHECKING:
    from bus.client import Client
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
    """The projections named: those that ship by their name, one's own as FILE.py:NAME. All that ship if none is."""
    from console.target import load
    from projections.catalogue import BUILT_IN
    from projections.projection import Projection

    for target in targets:
        if ":" not in target and target not in BUILT_IN:
            known = ", ".join(BUILT_IN)
            raise Failure(USAGE, f"there is no projection {target!r}", f"one of {known}; one's own: FILE.py:NAME")
    found = [load(target, Projection) if ":" in target else BUILT_IN[target] for target in targets]
    return found or list(BUILT_IN.values())
