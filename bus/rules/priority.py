"""Whose turn it is: levels of work, the rows that senders stand in within one, and who is served next.

Work of a capability waits in queues, one for each level and row. A level goes before those below it. Within a level it
is the sender's own waiting work that says how far back he stands: his first hundred pieces are in the first row,
whatever others have sent; so who sends thousands fills the rows behind, and who sends one has nobody's thousands before
him.
Whatever goes first leaves every eighth turn to what stands behind it, so nothing waits for ever.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import Literal, NamedTuple, TypeVar, get_args

T = TypeVar("T")
Priority = Literal["high", "normal", "low"]
LEVELS: tuple[Priority, ...] = get_args(Priority)
"""The first goes first."""
NORMAL: Priority = "normal"
ROWS = (100, 1_000, 10_000)
"""So many pieces of a sender's waiting work stand in the first row, the first two, the first three; the rest behind."""
SHARE = 8
"""Of so many turns, one is left to what stands behind."""


class Queue(NamedTuple):
    """Where work waits: at a level, in a row from 0."""

    level: Priority = NORMAL
    row: int = 0


MAIN = Queue()
"""Where most work waits: of no special level, and of senders that have little waiting."""
QUEUES: Sequence[Queue] = [Queue(level, row) for level, row in product(LEVELS, range(len(ROWS) + 1))]
"""All of them, in the order they are served."""


def checked(priority: object) -> Priority:
    """`priority` itself, if it is one. Raises ValueError."""
    for level in LEVELS:
        if priority == level:
            return level
    raise ValueError(f"priority is one of {', '.join(LEVELS)}, not {priority!r}")


def row_of(waiting: int) -> int:
    """The row for more work of a sender that has so much waiting."""
    return bisect_right(ROWS, waiting)


@lru_cache(maxsize=1_000)
def sender_token(sender: str) -> str:
    """A sender as a token of a subject: whoever that is, also somebody's customer."""
    return hashlib.blake2b(sender.encode(), digest_size=5).hexdigest()


class Turns:
    """Who is served next, turn after turn, of the queues where something waits."""

    def __init__(self) -> None:
        self._taken: Counter[object] = Counter()

    def next(self, waiting: Collection[Queue]) -> Queue:
        """The queue whose turn it is, one of `waiting`, which is not empty."""
        level = self._choose([level for level in LEVELS if any(each.level == level for each in waiting)])
        row = self._choose(sorted((level, each.row) for each in waiting if each.level == level))[1]
        return Queue(level, row)

    def _choose(self, among: Sequence[T]) -> T:
        """The first, unless it is the turn of those behind."""
        for each in among[:-1]:
            self._taken[each] += 1
            if self._taken[each] % SHARE:
                return each
        return among[-1]


def in_order(queues: Collection[Queue]) -> Iterator[Queue]:
    """These queues as they are served."""
    return (each for each in QUEUES if each in queues)
