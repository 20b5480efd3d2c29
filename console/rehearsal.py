"""The demo's run: agents in processes of their own, one of them killed while it works, the gate answered.

It knows what anybody can know: the run's state after every commit, and the beats of the agents.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import aclosing, suppress
from datetime import datetime
from pathlib import Path

import msgspec

from bus.broker.connection import Message
from bus.client import Client
from bus.clock import utc_now
from bus.errors import Refused
from bus.registry.presence import Beat, read_beat
from bus.rules.run import SUCCEEDED, Attempt, Item, PhaseState, RunState
from console.live import Screen, states
from console.processes import Process, Processes
from console.session import operator
from console.text import duration, escaped
from console.timeline import label

_CAST = ("author", "author", "analyst", "runner", "analyst", "runner", "reporter")
_KILLED_IN = ("write", "test")


class Recovery(msgspec.Struct, kw_only=True):
    """An attempt whose holder was killed, and how it went on; times are milliseconds from the kill.

    `noticed_ms` and `logged_ms` are from the log: the attempt's end and the next one's start. `seen_ms` is when that
    start was seen here. They are None until it has happened.
    """

    phase: str
    item: int | None
    attempt: int
    instance: str
    killed_at: datetime
    killed_s: float
    by: str = ""
    noticed_ms: float | None = None
    logged_ms: float | None = None
    seen_ms: float | None = None

    @property
    def name(self) -> str:
        return label(self.phase, self.item)


class Rehearsal:
    """One run of the testwriter. `began_s` is the monotonic time at which the command was typed."""

    def __init__(self, company: Processes, agents: Path, *, began_s: float, kills: bool, asks: bool) -> None:
        self.recoveries: list[Recovery] = []
        self._company = company
        self._agents = agents
        self._began_s = began_s
        self._may_kill = kills
        self._asks = asks
        self._beats: dict[str, Beat] = {}
        self._counts: Counter[str] = Counter()
        self._has_cast = False
        self._answering: asyncio.Task[None] | None = None

    def start_agent(self, name: str) -> Process:
        """One more instance of an agent, as a process of its own."""
        self._counts[name] += 1
        target = f"{self._agents / name}.py:agent"
        return self._company.start(f"{name}-{self._counts[name]}", "agent", "run", "--no-supervisor", target)

    async def play(self, client: Client, run: str, screen: Screen) -> RunState:
        """Show the run to its end, and do to it what a demo does."""
        heard = client.connection.subscribe(client.subjects.beats, self._hear)
        try:
            async with aclosing(states(client, run)) as seen:
                async for state, at in seen:
                    screen.show(state, at)
                    await self._act(client, state, screen)
        finally:
            heard.unsubscribe()
            if self._answering is not None:
                self._answering.cancel()
        return state

    async def _act(self, client: Client, state: RunState, screen: Screen) -> None:
        if not self._has_cast and state.phases["scan"].status in SUCCEEDED:
            # Not sooner: nine interpreters that start at once would make the first phase wait.
            self._has_cast = True
            screen.say(
                f"first phase done after {duration(time.monotonic() - self._began_s)}; starting the other agents"
            )
            for name in _CAST:
                self.start_agent(name)
            self._company.start("supervisor", "up", "--json")
        if self._may_kill:
            await self._kill_somebody(client, state, screen)
        for recovery in self.recoveries:
            if recovery.seen_ms is None:
                self._see(recovery, state, screen)
        if state.phases["review"].status == "waiting" and self._answering is None:
            self._answering = asyncio.create_task(self._answer(client, state, screen))

    # The kill

    async def _kill_somebody(self, client: Client, state: RunState, screen: Screen) -> None:
        instance = busy_instance(state, self._beats.values())
        pids = {each.instance: each.pid for each in await client.agents()} if instance is not None else {}
        process = self._company.by_pid(pids[instance]) if instance in pids else None
        if instance is None or process is None:
            return
        # It may be done with its work by now. So it is held still first, and only killed if the log says it works.
        process.freeze()
        held = _held(await client.runs.load(state.run), instance)
        if not held:
            process.thaw()
            return
        self._may_kill = False
        process.kill()
        killed_s, killed_at = time.monotonic(), utc_now()
        self.recoveries = [
            Recovery(
                phase=phase.key,
                item=item.index,
                attempt=attempt.number,
                instance=instance,
                killed_at=killed_at,
                killed_s=killed_s,
            )
            for phase, item, attempt in held
        ]
        names = ", ".join(f"{each.name} ({_module(state, each.item)})" for each in self.recoveries)
        screen.say(f"kill -9 {process.pid}: {instance}, in the middle of {names}")

    def _see(self, recovery: Recovery, state: RunState, screen: Screen) -> None:
        """Whether somebody else has the work by now."""
        item = state.phases[recovery.phase].item(recovery.item)
        assert item is not None, "it was held"
        attempts = {attempt.number: attempt for attempt in item.attempts}
        broken, next_one = attempts[recovery.attempt], attempts.get(recovery.attempt + 1)
        if next_one is None or broken.ended_at is None:
            return
        recovery.seen_ms = (time.monotonic() - recovery.killed_s) * 1000
        recovery.noticed_ms = _ms(broken.ended_at, recovery.killed_at)
        recovery.logged_ms = _ms(next_one.started_at, recovery.killed_at)
        recovery.by = next_one.instance
        screen.say(told(recovery))
        if all(each.seen_ms is not None for each in self.recoveries):
            replacement = self.start_agent(next_one.agent)
            screen.say(f"started {replacement.name} (pid {replacement.pid}) in its place")

    # The gate

    async def _answer(self, client: Client, state: RunState, screen: Screen) -> None:
        screen.say(totals(state))
        decide = client.approve
        by, comment = "demo", "the demo approves by itself"
        if self._asks:
            by, comment = operator(), ""
            if not await _agrees(screen):
                decide = client.reject
        # Somebody may have answered from another terminal.
        with suppress(Refused):
            await decide(state.run, "review", by=by, comment=comment)

    def _hear(self, message: Message) -> None:
        beat = read_beat(message)
        if beat is not None:
            self._beats[beat.instance] = beat


def busy_instance(state: RunState, beats: Iterable[Beat]) -> str | None:
    """Whom to kill: an instance that holds work which another one has room for at once, or None as yet.

    So all items must have been handed out, and somebody must be done with some of theirs. Of several, the one that
    began last.
    """
    known = {beat.instance: beat for beat in beats}
    for key in _KILLED_IN:
        phase = state.phases[key]
        capability = state.plan.graph[key].phase.capability or ""
        holders = [item.holder for item in phase.items if item.holder is not None]
        if not holders or any(item.status in ("pending", "ready") for item in phase.items):
            continue
        held = Counter(holder.instance for holder in holders)
        for holder in sorted(holders, key=lambda attempt: attempt.started_at, reverse=True):
            others = [beat for beat in known.values() if beat.instance != holder.instance]
            widths = {
                beat.instance: beat.capabilities[capability] for beat in others if capability in beat.capabilities
            }
            room = max((load.concurrency - held[other] for other, load in widths.items()), default=0)
            if holder.instance in known and room >= held[holder.instance]:
                return holder.instance
    return None


def told(recovery: Recovery) -> str:
    """A recovery in one line."""
    if recovery.seen_ms is None or recovery.noticed_ms is None or recovery.logged_ms is None:
        return f"{recovery.name} was not taken again"
    return (
        f"{recovery.name} recovered in {recovery.seen_ms:.0f} ms, attempt {recovery.attempt + 1} by {recovery.by} "
        f"(in the log: noticed after {recovery.noticed_ms:.0f} ms, started again after {recovery.logged_ms:.0f} ms)"
    )


def totals(state: RunState) -> str:
    """What the report counts."""
    output = state.phases["report"].output
    assert output is not None, "the gate comes after the report"
    found = output.value
    return (
        f"the report: {found['modules']} modules, {found['tests']} tests, {found['passed']} passed, "
        f"{found['failed']} found something, {found['errors']} could not be run, {found['timeouts']} hung"
    )


def _held(state: RunState, instance: str) -> list[tuple[PhaseState, Item, Attempt]]:
    return [held for held in state.held() if held[2].instance == instance]


def _module(state: RunState, item: int | None) -> str:
    output = state.phases["scan"].output
    assert output is not None and item is not None, "its modules are the items of later phases"
    return escaped(str(output.value["modules"][item]["name"]))


def _ms(later: datetime, earlier: datetime) -> float:
    return (later - earlier).total_seconds() * 1000


async def _agrees(screen: Screen) -> bool:
    """What a person says; no more input is a no."""
    while True:
        screen.ask("publish the report? [y/n]")
        line = await _typed()
        if line.strip().lower() in ("y", "yes"):
            return True
        if not line or line.strip().lower() in ("n", "no"):
            return False


async def _typed() -> str:
    """The next line of standard input, empty at its end."""
    loop = asyncio.get_running_loop()
    typed: asyncio.Future[bytes] = loop.create_future()

    def give(line: bytes) -> None:
        if not typed.done():
            typed.set_result(line)

    def read() -> None:
        line = os.read(0, 1024)
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(give, line)

    # Not the loop's own threads: those are waited for at the end, and nobody may ever type anything.
    threading.Thread(target=read, daemon=True).start()
    return (await typed).decode(errors="replace")
