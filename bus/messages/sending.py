"""Sending: work for whoever has a capability, in the log before anybody relies on it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from bus.broker.connection import Connection
from bus.clock import utc_now
from bus.errors import NoLiveAgent, NotFound, Refused, ScheduleError, SettingsError
from bus.format.subjects import Subjects, mailbox, versioned
from bus.log.durability import Durability
from bus.log.log import Log
from bus.messages.answers import Answers
from bus.messages.ways import go_on
from bus.registry.arrivals import who_is_there
from bus.registry.signposts import Signposts
from bus.registry.versions import check_range, is_range, newest
from bus.rules.commands import Begin
from bus.rules.plan import DAY_S, TASK
from bus.rules.priority import Priority, checked
from bus.runs.steering import as_json, new_run
from bus.runs.task import Task
from bus.settings import Settings

_LONGEST_S = 10 * 365 * DAY_S


class Receipt(msgspec.Struct, frozen=True):
    """What was accepted: it is in the log at `position`, as durable as `durability` says (see `bus.log.durability`).

    `unserved` names the capabilities nobody offers at this moment: the work waits for them. `duplicate`: it was
    accepted before, under the same id.
    """

    run: str
    position: int
    durability: Durability
    unserved: Sequence[str] = ()
    duplicate: bool = False


class Sending(Answers):
    """The verbs for handing work over; a part of the client."""

    connection: Connection
    log: Log
    subjects: Subjects
    settings: Settings
    durability: Durability
    signposts: Signposts

    async def send(
        self,
        capability: str,
        value: object,
        *,
        timeout_s: float = DAY_S,
        id: str | None = None,
        at: datetime | None = None,
        delay_s: float | None = None,
        key: str = "",
        version: str | None = None,
        sticky: str = "",
        priority: Priority | None = None,
        sender: str | None = None,
    ) -> Receipt:
        """Hand work to whoever has `capability`; it is durable when this returns, and given up after `timeout_s`.

        What was sent under an `id` before is not done again: the receipt is that of the first time, and says so. It
        begins no earlier than `at` (with a time zone), or in `delay_s`; its time counts from then on. With a `key` it
        is done when all that was sent to the capability with the same key before has ended, by an instance that serves
        it `ordered`; what has a time to begin at takes its place then. With a `version` it is for instances of an agent
        of that one that serve it `versioned`, and waits for them; with a range (`>=1.2,<2`), for the newest in it that
        is there. `priority` (high, normal, low) says whether it is taken before other work that waits. Within one,
        senders are served in turn: each client is one, unless `sender` says on whose account this is
        (`bus.rules.priority`). Within a handler, both are those of what it serves. Where operators share work out among
        versions (`set_route`), all that is `sticky` to the same goes the same way, by default that of one key, or one
        story. Raises Refused if the id was used for other work, NoLiveAgent if no version in the range is there.
        """
        if version is not None and key:
            raise SettingsError(
                "work has a key or a version, not both: the order of a key is kept by all versions together"
            )
        check_turn(key, priority)
        level = level_of(priority)
        if version is not None:
            capability = await self._of_version(capability, version)
        task = Task(capability, timeout_s)
        run = new_run(task.plan) if id is None else run_of(id)
        begin = Begin(
            task.plan,
            as_json(value),
            due_at=_due(at, delay_s),
            key=key,
            priority=level,
            sender=sender or "",
            sticky=sticky,
        )
        if key and id is not None:
            # Its place is stored before it is: what was sent before gets no second one.
            with suppress(NotFound):
                return await self._again(run, id, begin)
        submitted, unserved = await asyncio.gather(
            self.runs.submit(run, begin), self._unserved([capability], ordered=bool(key)), return_exceptions=True
        )
        if isinstance(submitted, Refused) and id is not None:
            return await self._again(run, id, begin)
        if isinstance(submitted, BaseException):
            raise submitted
        if isinstance(unserved, BaseException):
            raise unserved
        if not unserved and self.signposts.standing:
            self.runs.soon(go_on(self.signposts, self.runs, submitted.state, self.settings.request_timeout_s))
        return Receipt(run, submitted.state.position, self.durability, unserved)

    async def _of_version(self, capability: str, wanted: str) -> str:
        """The capability of the version that is wanted, or of the newest in a range of them."""
        if not is_range(check_range(wanted)):
            return versioned(wanted, capability)
        there = await who_is_there(self.connection, self.log, self.settings.beat_s)
        fitting = [
            each.version
            for each in there
            if each.matches(capability=capability, version=wanted, tag=None) and each.capabilities[capability].versioned
        ]
        if not fitting:
            raise NoLiveAgent(capability)
        return versioned(newest(fitting), capability)

    async def tell(
        self,
        agent: str,
        value: object,
        *,
        timeout_s: float = DAY_S,
        id: str | None = None,
        at: datetime | None = None,
        delay_s: float | None = None,
        key: str = "",
        priority: Priority | None = None,
        sender: str | None = None,
    ) -> Receipt:
        """Send a message to one agent by name, which it hears with `@agent.mail()`; otherwise as `send`.

        With a `key` it has to be heard in order: `@agent.mail(ordered=True)`.
        """
        about: dict[str, Any] = {"id": id, "at": at, "delay_s": delay_s, "priority": priority, "sender": sender}
        return await self.send(mailbox(agent), value, timeout_s=timeout_s, key=key, **about)

    async def _again(self, run: str, id: str, again: Begin) -> Receipt:
        """The receipt of what was sent before. Raises NotFound if nothing was, Refused if it was something else."""
        state = await self.runs.load(run)
        before, now = state.plan.capabilities, again.plan.capabilities
        if (before, state.key) != (now, again.key) or state.input.value != msgspec.json.decode(again.input):
            raise Refused(f"id {id!r} was used before, for other work: run {run} has it")
        async with aclosing(self.ledger.commits(run)) as commits:
            first = await anext(commits)
        unserved = await self._unserved(now, ordered=bool(again.key))
        return Receipt(run, first.position, self.durability, unserved, duplicate=True)

    async def _unserved(self, capabilities: Sequence[str], *, ordered: bool = False) -> list[str]:
        timeout_s = self.settings.request_timeout_s
        offered = await asyncio.gather(
            *(self.signposts.is_offered(each, timeout_s, ordered=ordered) for each in capabilities)
        )
        return [each for each, is_there in zip(capabilities, offered, strict=True) if not is_there]


def level_of(priority: str | None) -> Priority | None:
    """The level that was asked for, if one was. Raises SettingsError."""
    try:
        return checked(priority) if priority is not None else None
    except ValueError as error:
        raise SettingsError(str(error)) from None


def check_turn(key: str, priority: str | None) -> None:
    """Raises SettingsError for what has both."""
    if key and priority is not None:
        raise SettingsError("say a key or a priority: work with a key is done in order of sending")


def run_of(id: str) -> str:
    """The run of what is sent under an id: the same whoever sends it."""
    return f"{TASK}-{hashlib.blake2b(id.encode(), digest_size=16).hexdigest()}"


def _due(at: datetime | None, delay_s: float | None) -> datetime | None:
    """When it may begin; None: at once. Raises ScheduleError."""
    if at is not None and delay_s is not None:
        raise ScheduleError("say when by one of at and delay_s")
    if at is not None and at.tzinfo is None:
        raise ScheduleError("at is a time with a time zone")
    if delay_s is not None and not 0 <= delay_s <= _LONGEST_S:
        raise ScheduleError(f"delay_s is {delay_s}, it must be 0 or more, and at most 10 years")
    due_at = at if delay_s is None else utc_now() + timedelta(seconds=delay_s)
    return due_at.astimezone(UTC) if due_at is not None and due_at > utc_now() else None
