"""Room: how many attempts of one capability an instance may hold, whether it pulled them or was handed them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from bus.rules.priority import Priority


class Room:
    """Places for `size` attempts. Work that waits in the stream goes before what is handed over.

    Whenever a place becomes free and nobody waits for it, `freed` is told how many attempts there is room for.
    `is_behind` says whether more work of a level has to wait in the stream, because other work does.
    """

    def __init__(
        self, size: int, freed: Callable[[int], None], is_behind: Callable[[Priority], bool] = lambda _level: False
    ) -> None:
        self.is_behind = is_behind
        self._size = size
        self._freed = freed
        self._taken = 0
        self._pulled: deque[asyncio.Future[None]] = deque()
        self._handed: deque[asyncio.Future[None]] = deque()

    @property
    def free(self) -> int:
        """Places nobody has."""
        return self._size - self._taken

    def enter_now(self) -> bool:
        """Take a place if there is one. Who is let in has to `leave`."""
        if self._taken >= self._size:
            return False
        self._taken += 1
        return True

    async def enter(self, within_s: float, *, handed: bool) -> bool:
        """Take a place; False if there is none within that time. Who is let in has to `leave`."""
        if self.enter_now():
            return True
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line = self._handed if handed else self._pulled
        line.append(place)
        try:
            await asyncio.wait({place}, timeout=within_s)
        except asyncio.CancelledError:
            if place.done():
                self.leave()
            raise
        finally:
            if place.done():
                is_in = True
            else:
                is_in = False
                place.cancel()
                line.remove(place)
        return is_in

    def leave(self) -> None:
        """Give the place to who waits for one, or to nobody."""
        for line in (self._pulled, self._handed):
            if line:
                line.popleft().set_result(None)
                return
        self._taken -= 1
        self._freed(self.free)
