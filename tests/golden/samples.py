"""One message of each kind, with fixed ids and times. `python -m tests.golden.samples` writes their bytes anew.

Run it only after the decision: other processes, other versions and old logs hold the bytes as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from bus.archives.notices import REMOVED as ARCHIVE_REMOVED
from bus.archives.notices import SEALED, STARTED, ArchiveRemoved, ArchiveSealed, ArchiveStarted, SealedSegment
from bus.cache.cache import CACHED, FORGOTTEN, CacheForgotten
from bus.cache.cache import Entry as CacheEntry
from bus.coordination.barrier import ARRIVED, LEFT, BarrierArrived, BarrierLeft
from bus.coordination.decision import DECIDED, PROPOSED, VOTED, Decided, Proposed, Voted
from bus.coordination.lease import ACQUIRED, LOST, RELEASED, LeaseAcquired, LeaseLost, LeaseReleased
from bus.format.envelope import encode, envelope
from bus.format.payload import Limits, Packed, pack
from bus.guards.breaker import CLOSED, OPENED, PROBING, BreakerClosed, BreakerOpened, BreakerProbing
from bus.guards.limit import HELD, SPENT, LimitHeld, LimitSpent
from bus.guards.quota import Account, Quota, Standing
from bus.guards.tally import Tally
from bus.handlers.llm import LLM_CALLED, LLMCalled
from bus.history.rows import ASKED as ROWS_ASKED
from bus.history.rows import CHANGED as ROWS_CHANGED
from bus.history.rows import PAGE as ROWS_PAGE
from bus.history.rows import Mark, RowsAsked, RowsChanged, RowsPage
from bus.letters.verdicts import (
    CAPABILITY_RELEASED,
    LETTER_DISCARDED,
    LETTER_REDRIVEN,
    REDRIVE_BEGUN,
    REDRIVE_ENDED,
    CapabilityReleased,
    LetterDiscarded,
    LetterRedriven,
    RedriveBegun,
    RedriveEnded,
    Terms,
)
from bus.letters.wanted import Wanted
from bus.log.garbage import COLLECTED, PayloadsCollected
from bus.messages.handover import (
    ASKED,
    HANDED,
    LARGE_ANSWER,
    Answered,
    Asked,
    Busy,
    Enclosed,
    Failed,
    Handed,
    Recorded,
)
from bus.messages.parts import PARTS, Parts
from bus.messages.topics import PUBLISHED
from bus.problem import Problem
from bus.registry.card import (
    AGENT_DEREGISTERED,
    AGENT_LOST,
    AGENT_REGISTERED,
    AgentDeregistered,
    AgentLost,
    Card,
    Offering,
    without_schemas,
)
from bus.registry.orders import (
    AGENT_DRAINED,
    AGENT_QUARANTINED,
    AGENT_RELEASED,
    AgentDrained,
    AgentQuarantined,
    AgentReleased,
    Whom,
)
from bus.registry.presence import Beat, Held, Load, Present
from bus.rules.dead import LETTER, UNREADABLE, DeadLetter, Try, Unreadable
from bus.rules.events import (
    COMMIT,
    Event,
    Parent,
    PhaseApproved,
    PhaseAttemptFailed,
    PhaseCancelled,
    PhaseCompleted,
    PhaseEffectDone,
    PhaseEffectIntended,
    PhaseEffectNotDone,
    PhaseEscalated,
    PhaseExpanded,
    PhaseFailed,
    PhaseInputReplaced,
    PhaseProgressed,
    PhaseReady,
    PhaseSaved,
    PhaseSkipped,
    PhaseStarted,
    PhaseUndoing,
    PhaseWaiting,
    ResultRefused,
    RunArchived,
    RunCancelled,
    RunCheckpointed,
    RunCompleted,
    RunFailed,
    RunPaused,
    RunRedriven,
    RunResumed,
    RunRollingBack,
    RunSignalled,
    RunStarted,
    Source,
    body,
    type_of,
)
from bus.rules.plan import Approval, Phase, Plan
from bus.rules.references import ref
from bus.rules.retry import RetryPolicy
from bus.runs.halts import Halt
from bus.runs.hearing import AGAIN, Again
from bus.runs.lane import PARKED, PLACED, RESUMED, UNPARKED, Parked, Resumed, Unparked
from bus.runs.ledger import WORK
from bus.runs.recovery import RECOVERED, STARVED, Recovered, Recovery, Starved
from bus.runs.schedule import SCHEDULED, SKIPPED, UNSCHEDULED, OccurrenceSkipped, Schedule, Scheduled, Unscheduled
from bus.runs.task import Task
from bus.runs.waiting import Bell
from bus.schema import document, vocabulary

FOLDER = Path(__file__).parent
SCHEMAS = FOLDER / "documents" / "schema.json"
AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
LATER = datetime(2026, 1, 2, 4, 0, tzinfo=UTC)
RUN = "release-7f3k"

PLAN = Plan(
    "release",
    version="3",
    phases=[
        Phase("collect", "git.collect", input={"path": ref("input.path"), "depth": [1, 2.5, None, True]}),
        Phase(-8, "code.analyse", each=ref("collect.files"), width=8, timeout_s=120.0, queue_timeout_s=600.0),
        Phase("write", "text.write", after=[-8], retry=RetryPolicy(transient=5, dependency_s=2.5, max_s=60.0)),
        Phase("review", after=["write"], approval=Approval(expires_s=3600.0, on_expiry="approve", prompt="good? ✓")),
    ],
    timeout_s=7200.0,
)
GIVEN = msgspec.Raw(b'{"path":"src"}')
PROBLEM = Problem(
    "handler_error",
    "ConnectionResetError",
    "transient",
    detail="peer \u00e9",
    causes=("ConnectionResetError: peer \u00e9", "OSError: 104"),
    trace="Traceback (most recent call last):\n  ...",
    retry_after_s=2.5,
)
BARE = Problem("rejected", "no such sku")

KEY = "5f" * 32
SOURCE = Source("release-1a2b", "collect", 1, AT, 3)

# Of each type the fullest event, and the barest where that differs.
EVENTS: dict[str, Sequence[Event]] = {
    type_of(events[0]): events
    for events in (
        [
            RunStarted(
                plan=PLAN,
                input=msgspec.Raw(b'{"path":"src"}'),
                deadline_at=LATER,
                parent=Parent("ci-1", "sub"),
                key="customer-7",
                force=True,
                priority="high",
                sender="4f2a91c0",
            ),
            RunStarted(plan=PLAN, input=msgspec.Raw(b'{"path":"src"}'), deadline_at=LATER),
        ],
        [RunCompleted(failures=("write",)), RunCompleted()],
        [RunFailed(problem=PROBLEM), RunFailed(problem=BARE)],
        [RunCancelled(by="ann", reason="wrong branch"), RunCancelled(by="ann")],
        [
            RunRedriven(by="ann", phases=("write", "review"), deadline_at=LATER, afresh=True),
            RunRedriven(
                by="ann",
                phases=("-8", "write"),
                deadline_at=LATER,
                item=0,
                letter="5d6f",
                operation="0f9e8d",
                reason="mended",
            ),
            RunRedriven(by="ann", phases=("write", "review"), deadline_at=LATER),
        ],
        [RunPaused(by="ann", reason="deploy"), RunPaused(by="ann")],
        [RunResumed(by="ann")],
        [RunCheckpointed(name="before", by="ann", done=("collect",))],
        [
            RunRollingBack(by="ann", phases=("write",), undo=("write",), deadline_at=LATER, reason="wrong branch"),
            RunRollingBack(by="ann", phases=("write",), undo=(), deadline_at=LATER),
            RunRollingBack(by="the plan", phases=(), undo=("write",), deadline_at=LATER, problem=BARE),
        ],
        [
            PhaseUndoing(phase="write", input=msgspec.Raw(b'{"a":1}'), output=msgspec.Raw(b"2")),
            PhaseUndoing(
                phase="write",
                input=msgspec.Raw(b'{"a":1}'),
                output=msgspec.Raw(b"2"),
                effects=msgspec.Raw(b'{"charge":{"outcome":7},"mail":{}}'),
            ),
        ],
        [RunSignalled(signal="go", by="ann", data=msgspec.Raw(b'{"until":5}'))],
        [RunArchived(by="ann", upto=41, archive="3f2a1b0c9d8e")],
        [RunRedriven(by="ann", phases=("write", "review"), deadline_at=LATER)],
        [PhaseExpanded(phase="-8", items=2)],
        [
            PhaseInputReplaced(
                phase="-8",
                item=0,
                input=msgspec.Raw(b'{"file":"b.py"}'),
                by="ann",
                reason="renamed",
                transform="mend:file",
            ),
            PhaseInputReplaced(phase="collect", input=msgspec.Raw(b"null"), by="ann"),
        ],
        [PhaseReady(phase="-8", item=0, attempt=2, due_at=LATER), PhaseReady(phase="collect", attempt=1)],
        [
            PhaseStarted(
                phase="-8",
                item=0,
                attempt=2,
                agent="coder",
                instance="coder-1",
                deadline_at=LATER,
                because="input.config changed",
            ),
            PhaseStarted(phase="collect", attempt=1, agent="git", instance="git-1", deadline_at=LATER),
        ],
        [
            PhaseProgressed(phase="-8", item=0, attempt=2, fraction=0.25, note="a quarter"),
            PhaseProgressed(phase="collect", attempt=1, fraction=1.0),
        ],
        [
            PhaseEffectIntended(phase="-8", item=0, attempt=2, effect="charge"),
            PhaseEffectIntended(phase="collect", attempt=1, effect="charge"),
        ],
        [
            PhaseEffectDone(phase="-8", item=0, attempt=2, effect="charge", outcome=msgspec.Raw(b'{"id":7}')),
            PhaseEffectDone(phase="collect", attempt=1, effect="charge", outcome=msgspec.Raw(b"null")),
            PhaseEffectDone(
                phase="collect", attempt=1, effect="charge", outcome=msgspec.Raw(b"7"), by="ann", reason="I looked"
            ),
        ],
        [
            PhaseEffectNotDone(phase="-8", item=0, attempt=2, effect="charge", by="ann", reason="not in the books"),
            PhaseEffectNotDone(phase="collect", attempt=1, effect="charge"),
        ],
        [
            PhaseSaved(phase="-8", item=0, attempt=2, state=msgspec.Raw(b'{"upto":7}')),
            PhaseSaved(phase="collect", attempt=1, state=msgspec.Raw(b"7")),
        ],
        [
            PhaseCompleted(phase="-8", item=0, attempt=2, output=msgspec.Raw(b'{"lines": 3}')),
            PhaseCompleted(phase="collect", attempt=1, output=msgspec.Raw(b"null")),
            PhaseCompleted(phase="-8"),
            PhaseCompleted(phase="-8", item=0, attempt=2, output=msgspec.Raw(b"1"), key=KEY),
            PhaseCompleted(phase="collect", attempt=1, output=msgspec.Raw(b"1"), cached=SOURCE),
            PhaseCompleted(phase="go", output=msgspec.Raw(b'{"until":5}'), by="ann"),
        ],
        [
            PhaseAttemptFailed(
                phase="-8",
                item=0,
                attempt=1,
                problem=PROBLEM,
                instance="coder-1",
                cause="crashed",
                evidence="its connection closed",
            ),
            PhaseAttemptFailed(phase="collect", attempt=1, problem=BARE),
        ],
        [PhaseFailed(phase="-8", item=0, problem=PROBLEM), PhaseFailed(phase="collect", problem=BARE)],
        [
            PhaseWaiting(phase="review", expires_at=LATER, prompt="good? ✓"),
            PhaseWaiting(phase="review", expires_at=LATER),
            PhaseWaiting(phase="go", expires_at=LATER, signal="go"),
            PhaseWaiting(phase="review", expires_at=LATER, who=("ann", "ben")),
            PhaseWaiting(phase="sub", expires_at=LATER, child="ci-1-sub-0a1b"),
        ],
        [PhaseEscalated(phase="review", to=("carol",), expires_at=LATER)],
        [PhaseApproved(phase="review", by="ann", comment="fine"), PhaseApproved(phase="review", by="ann")],
        [
            PhaseSkipped(phase="write", reason="known", by="ann", lets_pass=True, output=msgspec.Raw(b"{}")),
            PhaseSkipped(phase="write", reason="-8 failed"),
        ],
        [
            PhaseCancelled(phase="-8", item=1, reason="item 0 failed"),
            PhaseCancelled(phase="write", reason="by ann"),
            PhaseCancelled(phase="write"),
        ],
        [
            ResultRefused(
                phase="-8",
                item=0,
                attempt=1,
                instance="coder-1",
                outcome="completed",
                reason="attempt 2 is in_progress",
            ),
            ResultRefused(
                phase="collect", attempt=1, instance="git-1", outcome="failed", reason="attempt 1 is completed"
            ),
        ],
    )
}

DIED = DeadLetter(
    capability="code.analyse",
    run=RUN,
    plan="release",
    phase="-8",
    item=0,
    problem=PROBLEM,
    attempt=2,
    passes=3,
    payload=msgspec.Raw(b'{"file":"a.py"}'),
    attempts=[
        Try(1, "coder", "coder-1", AT, LATER, "crashed", PROBLEM, "its connection closed"),
        Try(2, "coder", "coder-2", AT),
    ],
    began=7,
    origin=9,
    earlier="5d6e",
)
UNDECODED = Unreadable(
    "code.analyse",
    f"bus.work.code:analyse.{RUN}.-8:0.2",
    b"\x00\xff not JSON",
    "why",
    "coder-1",
    size_bytes=11,
    sha256="5f" * 32,
    agent="coder",
    headers={"Content-Type": "text/plain"},
    origin=11,
    stored_at=AT,
    delivered=2,
)
REMOVED = PayloadsCollected(by="ann", objects=2, size_bytes=4711, uploads=1, older_than_s=3600.0)
VERDICTS = {
    LETTER_REDRIVEN: LetterRedriven("ann", "5d6f", UNDECODED.subject, "mended", "0f9e8d"),
    LETTER_DISCARDED: LetterDiscarded("ann", "5d6f", "nobody needs it"),
    REDRIVE_BEGUN: RedriveBegun(
        by="ann",
        operation="0f9e8d",
        wanted=Wanted(capability="code.analyse", since=AT),
        upto=41,
        terms=Terms(most=100, pace_per_s=10.0, try_one=True, transform="mend:file"),
        reason="mended",
    ),
    REDRIVE_ENDED: RedriveEnded("ann", "0f9e8d", "capped", 100, 2),
    CAPABILITY_RELEASED: CapabilityReleased("ann", "code.analyse", "mended"),
}
ARCHIVE = {"by": "ann", "archive": "3f2a1b0c9d8e", "host": "vault", "folder": "/archive"}
NOTICES = {
    STARTED: ArchiveStarted(**ARCHIVE, policy=("run=30d", "topic=1w")),
    SEALED: ArchiveSealed(
        **ARCHIVE,
        records={"run": 2},
        subjects=1,
        segments=(SealedSegment("00000001.jsonl.zst", "5f" * 32, records=2, first=7, last=9),),
    ),
    ARCHIVE_REMOVED: ArchiveRemoved(**ARCHIVE, records=2, subjects=1, kept=("bus.run.lively",)),
}
NIGHTLY = Schedule(
    name="nightly",
    plan=PLAN,
    input=msgspec.Raw(b'{"path":"src"}'),
    cron="0 30 2 * * MON-FRI",
    zone="Europe/Berlin",
    overlap="allow",
    catch_up_s=3600,
)
SCHEDULES = {
    SCHEDULED: Scheduled("ann", NIGHTLY),
    UNSCHEDULED: Unscheduled("ann", "nightly"),
    SKIPPED: OccurrenceSkipped("nightly", LATER, "overlap", "nightly-20260102t013000"),
}
CACHE = {
    CACHED: CacheEntry(
        capability="code.analyse",
        key=KEY,
        components={"code": "3c" * 32, "input.path": "7a" * 32},
        source=SOURCE,
        position=41,
        expires_at=LATER,
    ),
    FORGOTTEN: CacheForgotten("ann", "code.analyse", KEY),
}
LEASE = {"kind": "permit", "name": "gpu", "slot": 2, "lease": "0a1b2c", "holder": "coder@vault:4711"}
COORDINATION: dict[str, object] = {
    ACQUIRED: LeaseAcquired(**LEASE, ttl_s=3),
    RELEASED: LeaseReleased(**LEASE),
    LOST: LeaseLost(**LEASE, reason="broken", by="ann"),
    ARRIVED: BarrierArrived(name="ready", generation=2, party="coder-1", parties=3),
    LEFT: BarrierLeft(name="ready", generation=2, party="coder-1", reason="gone"),
    PROPOSED: Proposed(
        by="ann",
        question="ship it? ✓",
        options=("yes", "no"),
        voters={"ann": 2, "bob": 1},
        quorum=0.5,
        tie="reject",
        deadline_at=LATER,
    ),
    VOTED: Voted(by="bob", option="no", comment="tests are red"),
    DECIDED: Decided(why="votes", tally={"yes": 2, "no": 1}, option="yes"),
}
BREAKERS = {
    OPENED: BreakerOpened(
        breaker="openai",
        by="/agent/coder/coder-1",
        retry_at=LATER,
        trips=2,
        failures=6,
        calls=10,
        reason="ConnectionError: no",
    ),
    PROBING: BreakerProbing(breaker="openai", by="/agent/coder/coder-1", probe="5d6f", until=LATER, trips=2),
    CLOSED: BreakerClosed(breaker="openai", by="ann", reason="it is back"),
}
LIMITS = {
    HELD: LimitHeld(limit="openai", by="/agent/coder/coder-1", until=LATER, reason="429"),
    SPENT: LimitSpent(limit="openai", by="/agent/coder/coder-1", budget="cost_per_day", amount=20.0, until=LATER),
}
TALLY = Tally("5d6f", 41, 3, 7)
STANDING = Standing(
    quota=Quota(calls_per_s=100, cost_per_day=20, burst=0.5),
    at=1767323045.5,
    accounts={
        "calls_per_s": Account(37.5, loans=((1767323045.75, 4.0),)),
        "cost_per_day": Account(19.5, window=1767312000.0, told=1767225600.0),
    },
    held_until=1767323045.5,
)
CALLS = {
    LLM_CALLED: LLMCalled(
        provider="anthropic",
        model="large-1",
        input_tokens=1200,
        output_tokens=340,
        cached_tokens=1000,
        cost_usd=0.0125,
        latency_s=2.5,
        error="timed_out",
        plan="release",
        item=0,
        instance="coder-1",
    )
}
RECOVERIES = {
    RECOVERED: Recovery(
        "supervisor-1",
        (
            Recovered(RUN, "-8", 2, "crashed", 0, "coder-1", "its connection closed"),
            Recovered(RUN, "collect", 1, "work_lost"),
        ),
        others=3,
        on_start=True,
    ),
    STARVED: Starved("supervisor-1", "code.analyse", AT, RUN, "-8", 2),
}
BEAT = Beat(
    agent="coder",
    instance="coder-1",
    standing="quarantined",
    note="by ann: wrong prices",
    capabilities={"code.analyse": Load(2, 8)},
    held=[Held(RUN, "-8", 0, 2), Held(RUN, "collect", None, 1)],
    lag_s=0.25,
    memory_mb=48,
    health="degraded",
)
CARD = Card(
    agent="coder",
    version="1.2.0",
    instance="coder-1",
    host="host",
    pid=4711,
    tags=("gpu",),
    standby=True,
    capabilities={
        "code.analyse": Offering(
            concurrency=8,
            timeout_s=30.0,
            tags=("slow",),
            takes=msgspec.Raw(b'{"type":"string"}'),
            gives=msgspec.Raw(b'{"type":"integer"}'),
        )
    },
)
PRESENT = Present(without_schemas(CARD), BEAT)
AGENTS = {
    AGENT_REGISTERED: CARD,
    AGENT_DEREGISTERED: AgentDeregistered("coder", "coder-1", "the process was told to stop", 1),
    AGENT_LOST: AgentLost("coder", "coder-1", "crashed", "its connection closed", 2),
}
ORDERS = {
    AGENT_DRAINED: AgentDrained("ann", Whom("coder", "coder-1"), "new host"),
    AGENT_QUARANTINED: AgentQuarantined("ann", Whom("coder", version=">=1.2,<2"), "wrong prices"),
    AGENT_RELEASED: AgentReleased("ann", Whom("coder")),
}
BELL = Bell("high", 2)
HALT = Halt([Held(RUN, "-8", 0, 2), Held(RUN, "collect", None, 1)], "the run was cancelled by ann")


def commit(events: Sequence[Event]) -> bytes:
    return encode(
        envelope(
            COMMIT,
            body(events),
            id="4b1d8f0a6c2e4d7b9f3a5e1c8d0b2f46",
            source="agent/coder/coder-1",
            time=AT,
            correlationid="order-7",
            causationid="0f9e8d7c6b5a49382716f5e4d3c2b1a0",
            runid=RUN,
        )
    )


def about_work(kind: str, data: object, attempt: int | None = None) -> bytes:
    return encode(
        envelope(
            kind,
            data,
            id="9c3e5a7b1d2f4e6088aabbccddeeff00",
            source="agent/coder/coder-1",
            time=AT,
            correlationid="order-7",
            causationid="4b1d8f0a6c2e4d7b9f3a5e1c8d0b2f46",
            runid=RUN,
            phase="-8",
            attempt=attempt,
        )
    )


def about_agent(kind: str, data: object) -> bytes:
    return encode(envelope(kind, data, id="5d6e7f8091a2b3c4d5e6f70819203a4b", source="agent/coder/coder-1", time=AT))


def handed_over(kind: str, data: object) -> bytes:
    return encode(
        envelope(
            kind,
            data,
            id="6e7f8091a2b3c4d5e6f708192a3b4c5d",
            source="/client",
            time=AT,
            correlationid="order-7",
            causationid="4b1d8f0a6c2e4d7b9f3a5e1c8d0b2f46",
            runid="task-7f3k",
        )
    )


HANDOVERS: dict[str, object] = {
    HANDED: Handed(Task("price", 30.0), msgspec.Raw(b'{"sku":"A-7"}'), "low", "customer-7"),
    ASKED: Asked(msgspec.Raw(b'{"sku":"A-7"}'), LATER),
}
REPLIES: dict[str, object] = {
    "task.busy.v1": Busy(),
    "task.recorded.v1": Recorded(41),
    "task.answered.v1": Answered(msgspec.Raw(b"750"), 41),
    "task.enclosed.v1": Enclosed(msgspec.Raw(b'{"dataref":"0f9e.json"}')),
    "task.failed.v1": Failed(PROBLEM),
}
STARTED_IN_LINE = RunStarted(
    plan=Task("price", 30.0).plan, input=msgspec.Raw(b'{"sku":"A-7"}'), deadline_at=LATER, key="customer-7"
)

ROWS: dict[str, Any] = {
    ROWS_ASKED: RowsAsked(Mark("runs/2/0f9e8d7c", 41, "order-7"), glances=True),
    ROWS_PAGE: RowsPage(
        {"order-7": msgspec.Raw(b'{"status":"completed"}'), "order-8": msgspec.Raw(b"null")},
        Mark("runs/2/0f9e8d7c", 43),
        afresh=True,
        more=True,
        omitted={"order-9": 1_400_000},
    ),
    ROWS_CHANGED: RowsChanged("runs/2/0f9e8d7c", 43),
}

MESSAGES: dict[str, bytes] = {
    "commit": commit([event for events in EVENTS.values() for event in events]),
    **{name: commit(events) for name, events in EVENTS.items()},
    WORK: about_work(WORK, None, attempt=2),
    PLACED: handed_over(PLACED, {"events": [STARTED_IN_LINE]}),
    PARKED: handed_over(PARKED, Parked("customer-7", 40)),
    UNPARKED: about_agent(UNPARKED, Unparked("customer-7", 41, waiting=True)),
    RESUMED: handed_over(RESUMED, Resumed("customer-7", "2f46")),
    AGAIN: about_agent(AGAIN, Again("2f46", "bus.topic.orders.created", 41, b"\xff")),
    LETTER: about_work(LETTER, DIED),
    UNREADABLE: about_agent(UNREADABLE, UNDECODED),
    **{kind: about_agent(kind, verdict) for kind, verdict in VERDICTS.items()},
    COLLECTED: about_agent(COLLECTED, REMOVED),
    **{kind: about_agent(kind, notice) for kind, notice in NOTICES.items()},
    **{kind: about_agent(kind, said) for kind, said in SCHEDULES.items()},
    **{kind: about_agent(kind, said) for kind, said in CACHE.items()},
    **{kind: about_agent(kind, said) for kind, said in COORDINATION.items()},
    **{kind: about_agent(kind, said) for kind, said in {**BREAKERS, **LIMITS, **CALLS}.items()},
    **{kind: about_agent(kind, said) for kind, said in (AGENTS | ORDERS).items()},
    **{kind: about_agent(kind, said) for kind, said in RECOVERIES.items()},
    PUBLISHED: about_agent(PUBLISHED, {"number": 7}),
    PARTS: about_work(PARTS, Parts(2, 4, [msgspec.Raw(b'"one"'), msgspec.Raw(b'{"two":2}')]), attempt=2),
    **{kind: handed_over(kind, data) for kind, data in HANDOVERS.items()},
    **{name: msgspec.json.encode(reply) for name, reply in (REPLIES | ROWS).items()},
    LARGE_ANSWER: handed_over(LARGE_ANSWER, 750),
    "beat": msgspec.json.encode(BEAT),
    "present.v1": msgspec.json.encode(PRESENT),
    "halt": msgspec.json.encode(HALT),
    "bell": msgspec.json.encode(BELL),
    "tally": msgspec.json.encode(TALLY),
    "standing": msgspec.json.encode(STANDING),
}


# The forms of one payload: compressed in the message, and as an object that is compressed or not.
LARGE = envelope(
    COMMIT,
    {"events": [{"type": "phase.completed.v1", "phase": "collect", "output": [{"lines": 3}] * 20}]},
    id="4b1d8f0a6c2e4d7b9f3a5e1c8d0b2f46",
    source="agent/coder/coder-1",
    time=AT,
    correlationid="order-7",
    runid=RUN,
)
ROOMY = 2**20
PAYLOADS: dict[str, Packed] = {
    "compressed": pack(LARGE, Limits(ROOMY, 0, ROOMY)),
    "object": pack(msgspec.structs.replace(LARGE, data=msgspec.Raw(b'"0f9e8d7c6b5a4938"')), Limits(ROOMY, 0, 0)),
    "object-compressed": pack(LARGE, Limits(ROOMY, 0, 0)),
}


def golden(name: str) -> Path:
    return FOLDER / f"{name}.json"


def schemas() -> bytes:
    """The schema document of everything on the wire, as it is now."""
    return document.encode(document.document(vocabulary.vocabulary(), vocabulary.upcasters(), {}))


if __name__ == "__main__":
    for name, message in MESSAGES.items():
        golden(name).write_bytes(message)
    for name, packed in PAYLOADS.items():
        golden(f"payload/{name}").write_bytes(packed.body)
    SCHEMAS.parent.mkdir(exist_ok=True)
    SCHEMAS.write_bytes(schemas())
