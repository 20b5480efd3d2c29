"""Rows of projections on the wire: what is asked of a runner that keeps them, and what it answers.

A mark says how much of a build somebody has; the answer is what has changed since then, and the next mark. So nobody
has to hear every change, only that there was one.
"""

from __future__ import annotations

import msgspec

ASKED = "rows.asked.v1"
PAGE = "rows.page.v1"
CHANGED = "rows.changed.v1"


class Mark(msgspec.Struct, frozen=True, omit_defaults=True):
    """How much of a build somebody has: all changes up to a position of the log; or of those at it, up to a key."""

    build: str = ""
    position: int = 0
    key: str | None = None


class RowsAsked(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What has changed since a mark. `glances`: of each row only what a list shows."""

    mark: Mark = Mark()
    glances: bool = False


class RowsPage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Rows that are not as they were at the mark, by key; null: it is gone. `mark` is what to ask with next.

    `afresh`: what was had before counts for nothing, this is the beginning of all of them. `more`: there are others;
    without it, who has taken every page has the rows as of the mark's position. `omitted`: rows too large for a
    message, with their size in bytes. With a `problem` there is nothing else.
    """

    rows: dict[str, msgspec.Raw]
    mark: Mark
    afresh: bool = False
    more: bool = False
    omitted: dict[str, int] = {}
    problem: str = ""


class RowsChanged(msgspec.Struct, frozen=True):
    """A build is further than it was: a reason to ask. Not stored."""

    build: str
    position: int


TYPES = {ASKED: RowsAsked, PAGE: RowsPage, CHANGED: RowsChanged}
