"""Why no server starts on a store: a running bus holds it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bus.errors import Unavailable
from console.failure import REFUSED, Failure


@contextmanager
def explained(store: Path | None, next_step: str) -> Iterator[None]:
    """What starts a server on `store` inside the block fails with `next_step` if a running bus has the folder."""
    try:
        yield
    except Unavailable as error:
        if store is None or not _is_held(store / "lock"):
            raise
        raise Failure(REFUSED, f"a running bus holds {store}", next_step) from error


def _is_held(lock: Path) -> bool:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
