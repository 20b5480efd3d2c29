"""Ways: where work may go whose capability an operator has given a route, as whoever asks or sends sees it.

Whoever waits for an answer does not wait for versions that nobody runs: the server says so at once, and the question
goes on to the next arm. The supervisor does the same for what is in the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import structlog

from bus.clock import utc_now
from bus.errors import BusError
from bus.format.subjects import routed
from bus.registry.signposts import Signposts
from bus.rules.commands import Reroute
from bus.rules.events import Arm
from bus.rules.run import RunState
from bus.runs.causality import served
from bus.runs.runs import Runs
from bus.runs.task import WORK

logger = structlog.get_logger(__name__)

_SOON_S = 0.02


def inherited(sticky: str) -> str:
    """What work sticks to, as its starter said; if he did not, what that sticks to which is served now."""
    facts = served()
    return sticky or (facts.sticky if facts is not None else "")


def ways(signposts: Signposts, capability: str, run: str, sticky: str) -> Iterator[Arm | None]:
    """Where the work of a new run may go, one after the other: its own arm first, then without those that are gone."""
    route = signposts.standing.get(capability)
    if route is None:
        yield None
        return
    facts = served()
    sticks_to = inherited(sticky) or (facts.correlation if facts is not None else run)
    gone: list[str] = []
    while (arm := route.arm(sticks_to, without=gone)) is not None:
        yield arm
        gone.append(arm.versions)


async def until_followed(signposts: Signposts, capability: str) -> bool:
    """Wait a moment, if nobody serves a route because it is new: then it is worth asking again."""
    if not signposts.is_new(capability, utc_now()):
        return False
    await asyncio.sleep(_SOON_S)
    return True


async def go_on(signposts: Signposts, runs: Runs, state: RunState, timeout_s: float) -> None:
    """Have a task that was just sent go another way, if nobody is there whom its route gave it to."""
    capability, item = state.capability(WORK) or "", state.phases[WORK].item(None)
    route = signposts.standing.get(capability)
    if route is None or item is None or item.arm is None or item.status != "ready":
        return
    gone: list[str] = []
    arm: Arm | None = item.arm
    try:
        while arm is not None and not await signposts.is_offered(routed(arm.versions, capability), timeout_s):
            gone.append(arm.versions)
            arm = route.arm(state.sticks_to, without=gone)
        if gone and arm is not None:
            await runs.submit(state.run, Reroute(WORK, None, item.attempt, tuple(gone)))
    except BusError as error:
        # The supervisor sees to it.
        logger.debug("not sent another way", run=state.run, error=str(error))
