"""The client: ask, send, start, watch. What anybody uses to talk to agents and to see what became of it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload
from uuid import uuid4

import msgspec
import structlog

from bus import dead
from bus.address import find_started
from bus.commands import Answer, Begin, Cancel, Redrive
from bus.connection import Connection
from bus.durability import Durability, prove
from bus.envelope import decode, envelope
from bus.errors import (
    Archived,
    BusError,
    MalformedMessage,
    NoLiveAgent,
    NotFound,
    PlanError,
    Refused,
    TimedOut,
    Unavailable,
)
from bus.events import Commit, Event, archived, is_ending
from bus.ledger import Ledger, utc_now
from bus.log import Log
from bus.logs import configure_if_not
from bus.messages import MESSAGES
from bus.natscontext import read_context
from bus.plan import TASK, Phase, Plan
from bus.presence import Beat, is_offered, roster
from bus.problem import Problem
from bus.references import ref
from bus.run import RunState
from bus.runs import Runs
from bus.server import embedded
from bus.settings import Settings
from bus.streams import info
from bus.subjects import Subjects

if TYPE_CHECKING:
    from bus.archive import Archive

logger = structlog.get_logger(__name__)

T = TypeVar("T")
_TASK_PHASE = "work"
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


class Receipt(msgspec.Struct, frozen=True):
    """What was accepted: it is in the log at `position`, as durable as `durability` says (see `bus.durability`).

    `unserved` names the capabilities nobody offers at this moment: the work waits for them.
    """

    run: str
    position: int
    durability: Durability
    unserved: Sequence[str] = ()


class Happening(msgspec.Struct, frozen=True):
    """One event of a run: its position (the commit's, and its index in it), its time, what it says."""

    run: str
    position: int
    index: int
    at: datetime
    event: Event
    commit: Commit


class WorkFailed(BusError):
    """The work was given up for good. `problem` says why; the whole story is in the log under `run`."""

    def __init__(self, run: str, problem: Problem) -> None:
        super().__init__(f"{problem} (run {run})")
        self.run = run
        self.problem = problem


class Client:
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
        self, plan: Plan, input: object = None, *, run: str | None = None, fail_fast: bool = False
    ) -> Receipt:
        """Start a run of `plan`; it is durable when this returns.

        `run` is its id, made from the plan's name if not given. With `fail_fast`, NoLiveAgent is raised, and nothing
        stored, if somebody is missing now. Raises Refused if there is a run with that id, TooLarge, Unavailable.
        """
        if not isinstance(plan, Plan):
            raise PlanError(f"a plan is a Plan, not {plan!r:.60}; `bus.planfile.read_plan` reads a file")
        name = run or f"{plan.name[:50]}-{_token()}"
        if fail_fast:
            missing = await self._unserved(plan.capabilities)
            if missing:
                raise NoLiveAgent(missing[0])
        begin = Begin(plan, _as_json(input if input is not None else {}))
        decided, missing = await asyncio.gather(
            self.runs.submit(name, begin), self._unserved([] if fail_fast else plan.capabilities)
        )
        return Receipt(name, decided.state.position, self.durability, missing)

    async def send(self, capability: str, value: object, *, timeout_s: float = 86_400.0) -> Receipt:
        """Hand work to whoever has `capability`; it is durable when this returns, and given up after `timeout_s`."""
        return await self.start(_task(capability, timeout_s), value)

    @overload
    async def ask(self, capability: str, value: object, gives: type[T], *, timeout_s: float = ...) -> T: ...

    @overload
    async def ask(self, capability: str, value: object, gives: None = ..., *, timeout_s: float = ...) -> Any: ...

    async def ask(
        self, capability: str, value: object, gives: type[T] | None = None, *, timeout_s: float = 30.0
    ) -> T | Any:
        """Send, and wait for the answer, decoded as `gives` (plain JSON values without it).

        Raises NoLiveAgent at once if nobody offers the capability, WorkFailed if the work was given up, TimedOut
        after `timeout_s`, which is also the work's own deadline.
        """
        receipt = await self.start(_task(capability, timeout_s), value)
        if receipt.unserved:
            await self.cancel(receipt.run, by=self.source, reason="nobody offers the capability")
            raise NoLiveAgent(capability)
        state = await self.result(receipt.run, timeout_s=timeout_s)
        return self.output(state, _TASK_PHASE, gives)

    async def result(self, run: str, *, timeout_s: float) -> RunState:
        """The run once it has ended. Raises TimedOut if that takes longer; the run goes on. Raises NotFound."""
        state = await self.runs.load(run)
        try:
            async with asyncio.timeout(timeout_s), aclosing(self.ledger.follow(run, after=state.position)) as commits:
                while state.is_open:
                    commit = await anext(commits)
                    if any(is_ending(event) for event in commit.events):
                        state = await self.runs.load(run)
        except TimeoutError:
            raise TimedOut(f"run {run} has not ended within {timeout_s:g} s") from None
        return state

    def output(self, state: RunState, phase: str, gives: Any = None) -> Any:
        """A phase's output. Raises WorkFailed if it has none, MalformedMessage if it is not a `gives`."""
        done = state.phases.get(phase)
        if done is None:
            raise NotFound(f"run {state.run} has no phase {phase!r}")
        if done.output is None:
            problem = done.problem or state.problem or Problem("expired", f"{phase} is {done.status}", "permanent")
            raise WorkFailed(state.run, problem)
        if gives is None:
            return done.output.value
        try:
            return MESSAGES.decode(done.output.raw, gives)
        except msgspec.ValidationError as error:
            wanted = getattr(gives, "__name__", repr(gives))
            raise MalformedMessage(f"the output of {phase!r} is not what was asked for ({wanted}): {error}") from error

    async def watch(self, run: str, *, after: int = 0) -> AsyncGenerator[Happening, None]:
        """A run's events as they happen, from after a position of the log; ends with it. Raises NotFound, Archived."""
        state: RunState | None = await self.ledger.as_of(run, after) if after else None
        if state is None and await self.log.last(self.subjects.run(run)) is None:
            raise NotFound(f"there is no run {run!r} in this log")
        if state is not None and not state.is_open:
            return
        async with aclosing(self.ledger.follow(run, after=after)) as commits:
            async for commit in commits:
                if (last := archived(commit)) is not None:
                    raise Archived(run, last.archive)
                for index, event in enumerate(commit.events):
                    yield Happening(run, commit.position, index, commit.at, event, commit)
                if any(is_ending(event) for event in commit.events) and await self._has_ended(run, commit):
                    return

    async def _has_ended(self, run: str, ending: Commit) -> bool:
        """Whether this ending is the last: a redriven run goes on after one."""
        state = await self.runs.load(run)
        return not state.is_open and state.ended_at == ending.at

    async def approve(self, run: str, phase: str, *, by: str, comment: str = "") -> RunState:
        """Open a gate. Raises Refused if it does not wait."""
        return (await self.runs.submit(run, Answer(phase, True, by, comment))).state

    async def reject(self, run: str, phase: str, *, by: str, comment: str = "") -> RunState:
        """Close a gate for good: the phase fails. Raises Refused if it does not wait."""
        return (await self.runs.submit(run, Answer(phase, False, by, comment))).state

    async def cancel(self, run: str, *, by: str, reason: str = "") -> RunState:
        """Stop a run. What is under way is not waited for; its results are refused. Raises Refused if it has ended."""
        return (await self.runs.submit(run, Cancel(by, reason))).state

    async def redrive(self, run: str, *, by: str, phases: Iterable[str] = ()) -> RunState:
        """Go on with a run that failed: with `phases`, or with all that did not succeed. Raises Refused."""
        return (await self.runs.submit(run, Redrive(by, tuple(phases)))).state

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
        record = await self.log.at(number)
        if record is None or not record.subject.startswith(self.subjects.dead_letters.removesuffix("*")):
            raise NotFound(f"there is no dead letter {number}")
        return dead.read(decode(record.body))

    async def redrive_letter(self, number: int, *, by: str) -> None:
        """Send dead work again to where it came from. Raises NotFound, Refused if it is not dead any more."""
        letter = await self.dead_letter(number)
        if isinstance(letter, dead.DeadLetter):
            if not dead.is_open(letter, await self.runs.load(letter.run)):
                raise Refused(
                    f"dead letter {number} was redriven before; `phasebus run show {letter.run}` has the rest"
                )
            await self.redrive(letter.run, by=by, phases=[letter.phase])
            return
        if letter.size_bytes > len(letter.body):
            raise Refused(f"dead letter {number} is the beginning of {letter.size_bytes} bytes: it can't be sent again")
        said = dead.LetterRedriven(by, number, letter.subject)
        record = envelope(dead.LETTER_REDRIVEN, said, id=uuid4().hex, source=self.source, time=utc_now())
        await self.log.append(self.subjects.ops("dead"), record)
        self.connection.publish(letter.subject, letter.body)

    async def _unserved(self, capabilities: Sequence[str]) -> list[str]:
        offered = await asyncio.gather(
            *(
                is_offered(self.connection, self.subjects, each, self.settings.request_timeout_s)
                for each in capabilities
            )
        )
        return [each for each, is_there in zip(capabilities, offered, strict=True) if not is_there]


@asynccontextmanager
async def connect(
    url: str | None = None,
    *,
    name: str = "client",
    settings: Settings | None = None,
    alone: bool = True,
    create: bool = True,
    **values: Any,
) -> AsyncIterator[Client]:
    """Connect to the bus: to `url`, to `NATS_URL`, to a NATS context, to the one `phasebus up` runs in this folder or
    above it, or else to a server of its own in a temporary folder (not with `alone=False`: then Unavailable is raised).

    `values` are settings by name, on top of the environment's. The streams are checked, and created if they are not
    there (with `create=False`, NotFound is raised instead). A lost line is made again for ever. A program that has not
    set up structlog gets JSON logs on stderr. Raises SettingsError, Unavailable, Misconfigured.
    """
    settings = settings or Settings.load(url=url, **values)
    configure_if_not(settings.log_level)
    subjects = Subjects(settings.namespace)
    async with AsyncExitStack() as stack:
        login = await _login(settings, stack, alone=alone)
        durability = login.durability or await prove(login.system_url, settings.durability, settings.request_timeout_s)
        connection = await stack.enter_async_context(
            Connection.open(
                login.url, name=name, credentials=login.credentials, connect_timeout_s=settings.request_timeout_s
            )
        )
        archive = await _archive(settings)
        log = Log(connection, subjects, settings, archive)
        await log.set_up(create=create)
        if archive is not None:
            archive.must_be_of((await info(connection, subjects.stream, settings.request_timeout_s)).created)
        tasks = await stack.enter_async_context(_tasks())
        source = f"/{name}"
        ledger = Ledger(log, connection, source=source)
        yield Client(
            settings,
            connection,
            log,
            ledger,
            Runs(ledger, tasks),
            source=source,
            system_url=login.system_url,
            operator_url=login.operator_url,
            durability=durability,
        )


class _Login(NamedTuple):
    """How to sign in; and how durable it is, where one of us has set the server up."""

    url: str
    system_url: str | None
    operator_url: str | None
    credentials: Path | None = None
    durability: Durability | None = None


async def _login(settings: Settings, stack: AsyncExitStack, *, alone: bool) -> _Login:
    system_url = settings.system_url.get_secret_value() if settings.system_url else None
    operator_url = settings.operator_url.get_secret_value() if settings.operator_url else None
    if settings.url is not None:
        return _Login(settings.url.get_secret_value(), system_url, operator_url, settings.credentials)
    if settings.context is not None:
        context = read_context(settings.context)
        return _Login(context.login_url, system_url, operator_url, settings.credentials or context.credentials)
    started = find_started(logger.warning)
    if started is not None:
        return _Login(started.url, started.system_url, started.operator_url, durability=started.durability)
    if not alone:
        raise Unavailable("no bus found: start one with `phasebus up` in this folder or above, or set NATS_URL")
    server = await stack.enter_async_context(embedded(durability=settings.durability, namespace=settings.namespace))
    logger.info("no bus found, so a private one was started", store=str(server.store))
    return _Login(server.url, server.system_url, server.operator_url, durability=settings.durability)


async def _archive(settings: Settings) -> Archive | None:
    if settings.archive is None:
        return None
    from bus.archive import Archive  # noqa: PLC0415 - only who has one pays for it

    return await Archive.open(settings.archive)


@asynccontextmanager
async def _tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group whose body raises what it raises, not a group of it."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as raised:
        if len(raised.exceptions) == 1:
            raise raised.exceptions[0] from None
        raise


def _as_json(value: object) -> msgspec.Raw:
    try:
        return msgspec.Raw(msgspec.json.encode(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise MalformedMessage(f"the input can't be written as JSON: {error}") from error


@lru_cache(maxsize=1_000)
def _task(capability: str, timeout_s: float) -> Plan:
    """Work outside a run is a run of one phase: the same attempts, deadlines, recovery and dead letters."""
    return Plan(TASK, phases=[Phase(_TASK_PHASE, capability, input=ref("input"))], timeout_s=timeout_s)


def _token() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(10))
