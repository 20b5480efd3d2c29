"""Wanted: which dead letters somebody means. What is left empty does not matter; all that is said has to hold."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import get_args

import msgspec

from bus.errors import SettingsError
from bus.letters.causes import cause_of
from bus.problem import ErrorClass
from bus.rules.dead import DeadLetter, Standing, Unreadable


class Wanted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`cause` is how the work ended: `crashed`, `timed_out`, `unclaimed`, `error` (the handler raised), `unreadable`.

    `code` and `error_class` are those of its problem; `agent` tried it; it died from `since` on and before `until`,
    and stands as one of `status`. `group` is the key of a cause (`bus.letters.causes`), `numbers` are letters by their
    numbers.
    """

    capability: str | None = None
    cause: str | None = None
    error_class: str | None = None
    code: str | None = None
    group: str | None = None
    agent: str | None = None
    run: str | None = None
    plan: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    status: Sequence[Standing] = ()
    numbers: Sequence[int] = ()

    def __post_init__(self) -> None:
        for name in ("since", "until"):
            instant = getattr(self, name)
            if instant is not None and instant.tzinfo is None:
                raise SettingsError(f"{name} needs a time zone: {instant.isoformat()}")
        if isinstance(self.status, str) or not set(self.status) <= set(get_args(Standing)):
            raise SettingsError(f"status is a list of {', '.join(get_args(Standing))}, not {self.status!r}")
        if self.error_class is not None and self.error_class not in get_args(ErrorClass):
            raise SettingsError(f"error_class is one of {', '.join(get_args(ErrorClass))}, not {self.error_class!r}")

    def fits(self, number: int, at: datetime, letter: DeadLetter | Unreadable) -> bool:
        """Whether the letter is meant, as far as it says that itself: all but how it stands now."""
        return (
            (not self.numbers or number in self.numbers)
            and (self.since is None or self.since <= at)
            and (self.until is None or at < self.until)
            and self.capability in (None, letter.capability)
            and self.cause in (None, letter.cause)
            and (self.agent is None or self.agent in _agents(letter))
            and self._fits_origin(letter)
            and self._fits_problem(letter)
        )

    def _fits_origin(self, letter: DeadLetter | Unreadable) -> bool:
        if isinstance(letter, Unreadable):
            return self.run is None and self.plan is None
        return self.run in (None, letter.run) and self.plan in (None, letter.plan)

    def _fits_problem(self, letter: DeadLetter | Unreadable) -> bool:
        cause = cause_of(letter)
        return (
            self.code in (None, cause.code)
            and self.error_class in (None, cause.error_class)
            and self.group in (None, cause.key)
        )


def _agents(letter: DeadLetter | Unreadable) -> set[str]:
    return {letter.agent} if isinstance(letter, Unreadable) else {each.agent for each in letter.attempts}
