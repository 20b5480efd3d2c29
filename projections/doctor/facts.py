"""Facts: what was found when everything was asked at once. What nobody could tell is None: nothing follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

import msgspec

from bus.guards.breaker import BreakerState
from bus.guards.quota import Standing
from bus.rules.run import RunState
from projections.attention import Wait
from projections.history import History

Reached = Literal["yes", "nowhere", "refused", "mute", "unreachable", "no_jetstream"]
"""How far one came: to a server that serves; no address is known; the login was refused; somebody listens there and
says nothing; nobody listens; the server keeps no streams."""

Life = Literal["alive", "gone", "mute"]
"""Whether an instance answers; nobody listens for it any more; it is connected, and does not answer."""

Running = Literal["", "running", "stopped", "ended"]
"""What the system says of a process of this machine; empty where nobody can tell."""

Asked = tuple[str, str, int | None, int]
"""An attempt: run, phase, item, number."""


class Ground(msgspec.Struct, frozen=True, kw_only=True):
    """The server and the streams. `lost` are those of the namespace that are not there, `kept` those that are.

    `wrong` says which setting of a stream is not as the bus needs it. `unsynced` names a server that acknowledges
    before it has written. `unwritable` is why a small write failed. `ahead_s` is how far this machine's clock is ahead
    of the server's. `system` is why there is no login of the system account: empty if there is one.
    """

    reached: Reached = "yes"
    where: str = ""
    said: str = ""
    kept: Sequence[str] = ()
    lost: Sequence[str] = ()
    others: Sequence[str] = ()
    wrong: str = ""
    unsynced: str | None = None
    unwritable: str = ""
    full: float | None = None
    max_payload: int | None = None
    ahead_s: float | None = None
    system: str | None = None


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """An instance of an agent, as it was found: `held` are the attempts it says it holds.

    `takes_nothing` says why, if it is draining or quarantined; of a capability that is `paused` it takes nothing
    either.
    """

    instance: str
    agent: str = ""
    host: str = ""
    pid: int = 0
    life: Life = "alive"
    process: Running = ""
    takes_nothing: str = ""
    paused: frozenset[str] = frozenset()
    capabilities: Mapping[str, int] = {}
    held: frozenset[Asked] = frozenset()


class Lead(msgspec.Struct, frozen=True, kw_only=True):
    """Who supervises: `leader` is empty if nobody does. `standing_by` counts the connections of supervisors, None if
    nobody can tell. `pid` is the process that serves the bus of this folder, if there is one."""

    leader: str
    standing_by: int | None = None
    pid: int = 0
    process: Running = ""


class Letter(msgspec.Struct, frozen=True):
    """A dead letter that nobody has seen to."""

    number: int
    at: datetime
    capability: str
    said: str


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was found at `at`; with `run`, about that run, whose state is then among `runs`.

    `busy` counts the attempts under way of each capability, in all runs. `said` are the moments at which attempts under
    way said something of themselves, and `waits` what they wait for that somebody else has. `unasked` is what could not
    be found out in time.
    """

    at: datetime
    namespace: str = "bus"
    run: str | None = None
    is_missing: bool = False
    ground: Ground = Ground()
    lead: Lead | None = None
    members: Mapping[str, Member] | None = None
    busy: Mapping[str, int] = {}
    runs: Sequence[RunState] = ()
    history: History = History()
    said: Mapping[Asked, Sequence[datetime]] = {}
    waits: Mapping[Asked, Wait] = {}
    letters: Sequence[Letter] = ()
    breakers: Sequence[BreakerState] = ()
    limits: Mapping[str, Standing] = {}
    unasked: Sequence[str] = ()
