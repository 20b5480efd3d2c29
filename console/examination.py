"""The examination: everything the doctor wants to know, asked at once and within five seconds.

What does not answer in time is named as not asked, and nothing is concluded from it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable
from contextlib import aclosing
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import urlsplit

from bus import clock
from bus.broker.natscontext import read_context
from bus.client import Client
from bus.connecting import connect
from bus.errors import BusError, NotFound
from bus.rules import dead
from bus.rules.run import RunState
from bus.settings import Settings
from console import rollcall, soundings
from console.address import Address, find_started
from projections.catchup import build
from projections.doctor.facts import Facts, Ground, Letter
from projections.history import History, learn
from projections.runs import RUNS, find

_CONNECT_S = 1.5
_PART_S = 2.0
_ALL_S = 4.0
"""With what a command needs to start and to say it, five seconds."""
_LETTERS = 200
_LATELY = timedelta(days=1)
T = TypeVar("T")


async def examine(place: Address, run: str | None) -> Facts:
    """The facts about the bus at `place`, and about one run if it is named. Raises SettingsError."""
    values: dict[str, Any] = dict(place.settings)
    settings = Settings.load(**values)
    ends_at = asyncio.get_running_loop().time() + _ALL_S
    url = settings.url.get_secret_value() if settings.url is not None else ""
    if not url and settings.context is not None:
        url = read_context(settings.context).login_url
    parts = urlsplit(url.partition(",")[0])
    where = f"{parts.hostname}:{parts.port or 4222}"
    bound = {"append_timeout_s": _PART_S, "request_timeout_s": _CONNECT_S}
    try:
        async with connect(name="doctor", alone=False, create=False, check=False, **values | bound) as client:
            return await _Examination(client, where, run, ends_at).facts()
    except BusError as error:
        ground = await soundings.unreached(error, url)
        return Facts(at=clock.utc_now(), namespace=settings.namespace, run=run, ground=ground)


class _Examination:
    def __init__(self, client: Client, where: str, run: str | None, ends_at: float) -> None:
        self._client = client
        self._where = where
        self._run = run
        self._ends_at = ends_at
        self._unasked: list[str] = []

    async def facts(self) -> Facts:
        client = self._client
        namespace = client.subjects.namespace
        ground, seen = await asyncio.gather(
            soundings.ground(client, self._where),
            soundings.overview(client.system_url, client.settings.durability),
        )
        ground = _with(ground, seen)
        if ground.reached != "yes" or client.subjects.stream in ground.lost:
            return Facts(at=clock.utc_now(), namespace=namespace, run=self._run, ground=ground)
        everything, letters, breakers, limits, waits, lead = await asyncio.gather(
            self._in_time("runs", self._runs(), {}),
            self._in_time("dead letters", self._letters(), []),
            self._in_time("breakers", client.breakers(), []),
            self._in_time("limits", client.limits(), {}),
            self._in_time("locks", rollcall.waits(client), {}),
            self._in_time("the supervisor", rollcall.lead(client, seen.connected, find_started()), None),
        )
        chosen, run = await self._chosen(everything)
        holders = [holder.instance for state in chosen for _, _, holder in state.held()]
        members, said = await asyncio.gather(
            self._in_time("agents", rollcall.members(client, holders, seen.connected), None),
            self._in_time("progress", rollcall.said(client, chosen), {}),
        )
        history = learn(everything.values()) if everything else History()
        return Facts(
            at=clock.utc_now(),
            namespace=namespace,
            run=run or self._run,
            is_missing=self._run is not None and run is None,
            ground=ground,
            lead=lead,
            members=members,
            busy=Counter(
                state.capability(phase.key) or "" for state in everything.values() for phase, _, _ in state.held()
            ),
            runs=chosen,
            history=history,
            said=said,
            waits=waits,
            letters=letters,
            breakers=breakers,
            limits=limits,
            unasked=self._unasked,
        )

    async def _in_time(self, what: str, asked: Awaitable[T], otherwise: T) -> T:
        try:
            async with asyncio.timeout_at(self._bound()):
                return await asked
        except (BusError, TimeoutError):
            self._unasked.append(what)
            return otherwise

    def _bound(self) -> float:
        """Until when this part may take, so that there is something to say in time."""
        return min(asyncio.get_running_loop().time() + _PART_S, self._ends_at)

    async def _runs(self) -> dict[str, RunState]:
        return dict((await build(self._client, RUNS)).rows)

    async def _chosen(self, everything: dict[str, RunState]) -> tuple[list[RunState], str | None]:
        """The run that was asked about, with its id; or all of them."""
        if self._run is None:
            return list(everything.values()), None
        try:
            state = find(everything, self._run)
        except NotFound:
            try:
                # There may be more runs than could be read in time.
                async with asyncio.timeout_at(self._bound()):
                    state = await self._client.runs.load(self._run)
            except (BusError, TimeoutError):
                return [], None
        return [state], state.run

    async def _letters(self) -> list[Letter]:
        """Those of the last day that nobody has seen to."""
        found: list[Letter] = []
        since = clock.utc_now() - _LATELY
        async with aclosing(self._client.dead_letters(status=["open"], since=since)) as letters:
            async for each in letters:
                letter = each.letter
                said = letter.problem.title if isinstance(letter, dead.DeadLetter) else letter.reason
                found.append(Letter(each.number, each.at, letter.capability, said))
                if len(found) == _LETTERS:
                    break
        return found


def _with(ground: Ground, seen: soundings.Overview) -> Ground:
    from msgspec.structs import replace

    return replace(ground, system=seen.refused, unsynced=seen.unsynced, full=seen.full)
