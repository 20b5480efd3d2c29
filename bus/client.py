"""The client: what anybody uses to talk to agents and to see what became of it. Its verbs are in parts, by noun."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import structlog

from bus import dead, feed
from bus.asking import Receipt
from bus.commands import Begin
from bus.connection import Connection
from bus.durability import Durability
from bus.envelope import Envelope, envelope
from bus.errors import Archived, MalformedMessage, NoLiveAgent, NotFound, PlanError, Refused
from bus.events import Commit, archived, is_ending
from bus.happening import Happening
from bus.ledger import Ledger, utc_now
from bus.log import Log
from bus.plan import Plan
from bus.presence import Beat, roster
from bus.run import RunState
from bus.runs import Runs
from bus.schedules import Scheduling
from bus.selection import Selection
from bus.settings import Settings
from bus.steering import as_json, new_run
from bus.streaming import Streaming
from bus.topics import Topics

logger = structlog.get_logger(__name__)


class Client(Streaming, Topics, Scheduling):
    """One process's door to a bus. Made by `connect`, closed with it."""

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        log: Log,
        ledger: Ledger,
        runs: Runs,
        *,
        source: str,
        system_url: str | None,
        operator_url: str | None,
        durability: Durability,
    ) -> None:
        self.settings = settings
        self.connection = connection
        self.subjects = log.subjects
        self.log = log
        self.ledger = ledger
        self.runs = runs
        self.source = source
        self.system_url = system_url
        self.operator_url = operator_url
        self.durability = durability

    async def start(
        self,
        plan: Plan,
        input: object = None,
        *,
        run: str | None = None,
        fail_fast: bool = False,
        first: str | None = None,
        last: str | None = None,
    ) -> Receipt:
        """Start a run of `plan`; it is durable when this returns.

        `run` is its id, made from the plan's name if not given. With `first` and `last`, only the phases from the one
        to the other, in the plan's order, are run. With `fail_fast`, NoLiveAgent is raised, and nothing
        stored, if somebody is missing now. Raises Refused if there is a run with that id, TooLarge, Unavailable.
        """
        if not isinstance(plan, Plan):
            raise PlanError(f"a plan is a Plan, not {plan!r:.60}; `bus.planfile.read_plan` reads a file")
        name = run or new_run(plan)
        if fail_fast:
            missing = await self._unserved(plan.capabilities)
            if missing:
                raise NoLiveAgent(missing[0])
        begin = Begin(plan, as_json(input if input is not None else {}), first, last)
        decided, missing = await asyncio.gather(
            self.runs.submit(name, begin), self._unserved([] if fail_fast else plan.capabilities)
        )
        return Receipt(name, decided.state.position, self.durability, missing)

    def events(
        self, selection: Selection | None = None, *, follow: bool = False, **wanted: Any
    ) -> AsyncGenerator[Happening, None]:
        """What the log holds of a selection, event by event, given whole or as its fields: `events(runs=["r"])`.

        With `follow` it goes on with what is stored from now on, for ever. Close it (`contextlib.aclosing`) if you
        leave it early. Raises SettingsError, InvalidName, Unavailable.
        """
        return feed.happenings(self.log, selection or Selection(**wanted), follow=follow)

    async def watch(self, run: str, *, after: int = 0) -> AsyncGenerator[Happening, None]:
        """A run's events as they happen, from after a position of the log; ends with it. Raises NotFound, Archived.

        What can't be read is passed over, and logged.
        """
        subject = self.subjects.run(run)
        state: RunState | None = await self.ledger.as_of(run, after) if after else None
        if state is None and await self.log.last(subject) is None:
            raise NotFound(f"there is no run {run!r} in this log")
        if state is not None and not state.is_open:
            return
        async with aclosing(self.log.follow(subject, after=after)) as records:
            async for record in records:
                found = feed.read(record)
                commit = found[-1].commit
                if commit is not None and (last := archived(commit)) is not None:
                    raise Archived(run, last.archive)
                for each in found:
                    if each.problem:
                        logger.warning("record set aside", run=run, position=record.position, error=each.problem)
                    else:
                        yield each
                if commit is not None and any(map(is_ending, commit.events)) and await self._has_ended(run, commit):
                    return

    async def _has_ended(self, run: str, ending: Commit) -> bool:
        """Whether this ending is the last: a redriven run goes on after one."""
        state = await self.runs.load(run)
        return not state.is_open and state.ended_at == ending.at

    async def agents(self) -> list[Beat]:
        """Every instance that answers now."""
        return await roster(self.connection, self.subjects)

    async def dead_letters(self) -> AsyncIterator[tuple[int, dead.DeadLetter | dead.Unreadable]]:
        """Every dead letter ever, with its number (its position in the log), oldest first."""
        async for record in self.log.read(self.subjects.dead_letters):
            try:
                letter = dead.read(record.envelope())
            except MalformedMessage as error:
                logger.warning("record set aside", subject=record.subject, position=record.position, error=str(error))
                continue
            yield record.position, letter

    async def dead_letter(self, number: int) -> dead.DeadLetter | dead.Unreadable:
        """One dead letter. Raises NotFound."""
        return dead.read(await self._dead_message(number))

    async def redrive_letter(self, number: int, *, by: str) -> None:
        """Send dead work again to where it came from. Raises NotFound, Refused if it is not dead any more."""
        message = await self._dead_message(number)
        letter = dead.read(message)
        if isinstance(letter, dead.DeadLetter):
            if not dead.is_open(letter, await self.runs.load(letter.run)):
                raise Refused(
                    f"dead letter {number} was redriven before; `phasebus run show {letter.run}` has the rest"
                )
            await self.redrive(letter.run, by=by, phases=[letter.phase])
            return
        if letter.size_bytes > len(letter.body):
            raise Refused(f"dead letter {number} is the beginning of {letter.size_bytes} bytes: it can't be sent again")
        # By its id: its number is its position in this log, and an import into another gives it a new one.
        said = dead.LetterRedriven(by, message.id, letter.subject)
        record = envelope(dead.LETTER_REDRIVEN, said, id=uuid4().hex, source=self.source, time=utc_now())
        await self.log.append(self.subjects.ops("dead"), record)
        # A letter that was imported names a subject of the bus it comes from.
        self.connection.publish(self.subjects.ours(letter.subject), letter.body)

    async def _dead_message(self, number: int) -> Envelope:
        record = await self.log.at(number)
        if record is None or not record.subject.startswith(self.subjects.dead_letters.removesuffix("*")):
            raise NotFound(f"there is no dead letter {number}")
        return record.envelope()
