"""What came of a rehearsal: each piece of work done again, and the phases of others that differences reach. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bus.history.diff import Difference
from bus.replay.asked import Departure
from bus.replay.counterfactual import Downstream
from bus.replay.recorded import Result, Verdict


class Rehearsed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One piece of work, done again. `position` is that of its `phase.started`, None where there was none.

    `input` is where the input parts from the recorded one, if it does, `output` where the two outputs do, and `asks`
    what its handler asks of others otherwise, which is a difference, too. `new` is what has no recorded result to
    compare with: its process died, or it would not have been done then.
    """

    phase: str
    attempt: int
    capability: str
    verdict: Verdict
    now: Result
    recorded: Result | None = None
    item: int | None = None
    position: int | None = None
    input: Difference | None = None
    output: Difference | None = None
    asks: Sequence[Departure] = ()

    @property
    def is_additional(self) -> bool:
        """Whether it was not there to be done then."""
        return self.verdict == "new" and self.position is None


class Rehearsal(msgspec.Struct, frozen=True, kw_only=True):
    """One run: what was done again, in order, and the phases of others that the differences reach."""

    run: str
    plan: str
    work: Sequence[Rehearsed]
    downstream: Sequence[Downstream]

    @property
    def differences(self) -> list[Rehearsed]:
        """The work that did not come out as it had, or was not there to come out."""
        return [each for each in self.work if each.verdict in ("differs", "failed") or each.is_additional]

    @property
    def is_same(self) -> bool:
        return not self.differences and not self.downstream
