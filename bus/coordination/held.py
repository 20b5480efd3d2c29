"""A lease as its holder has it: the token, and the holder's own clock, by which it stops before the server ends it."""

from __future__ import annotations

from time import monotonic

import msgspec

from bus.coordination.lease import Place
from bus.errors import LeaseLost
from bus.log.bucket import Entry

# What has begun when the holder stops has the rest of the time to end.
_SAFE_SHARE = 2 / 3


class Hold(msgspec.Struct, frozen=True):
    """What a place's key holds: whose lease it is."""

    lease: str
    holder: str


class Lease:
    """A place that this process has, until it gives it back or loses it. `token` fences what is done under it.

    An outside store that is to be safe from a holder that was frozen keeps the highest token it has seen, and refuses
    a lower one. The bus does it by itself: `log.append(..., fence=lease)`.
    """

    def __init__(self, place: Place, id: str, holder: str, ttl_s: int, subject: str) -> None:
        self.place = place
        self.id = id
        self.holder = holder
        self.ttl_s = ttl_s
        self.subject = subject
        self.token = 0
        self.revision = 0
        self.deadline = 0.0
        self._lost = ""

    @property
    def what(self) -> str:
        return str(self.place)

    @property
    def value(self) -> bytes:
        """What its key holds."""
        return msgspec.json.encode(Hold(self.id, self.holder))

    @property
    def slot(self) -> int | None:
        """Which of a semaphore's permits this is, from 0."""
        return self.place.slot

    @property
    def remaining_s(self) -> float:
        """How long it is safe to act without another renewal, by this process's own clock; 0 if it is lost."""
        # The clock of the event loop; a thread may ask as well.
        return 0.0 if self._lost else max(0.0, self.deadline - monotonic())

    @property
    def is_held(self) -> bool:
        return self.remaining_s > 0

    def check(self) -> None:
        """Before doing what can't be taken back. Raises LeaseLost if the lease was lost, or may be by now."""
        if not self.is_held:
            raise self.lost()

    def extend(self, sent_at: float) -> None:
        """It was renewed by what was sent at `sent_at`: the server counts from when that came, which was later."""
        self.deadline = sent_at + self.ttl_s * _SAFE_SHARE

    def lose(self, reason: str) -> None:
        """From now on it is not held."""
        self._lost = self._lost or reason

    def lost(self) -> LeaseLost:
        return LeaseLost(self.what, self.token, self._lost or f"it was not renewed within {self.ttl_s} s")


_holds = msgspec.json.Decoder(Hold)


def hold_in(entry: Entry | None) -> Hold | None:
    """Whose lease a key holds; None: nobody's."""
    try:
        return _holds.decode(entry.value) if entry is not None and not entry.is_over else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
