"""The subject grammar: which names can be tokens, and which subject carries what.

A name becomes one token of a subject, so it may hold nothing that NATS gives a meaning to. Where a token has two
parts (a dotted capability, an item of a phase), they are joined by `:`, which no name may contain.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import NamedTuple

from bus.errors import InvalidName, MalformedMessage

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_NAME_OR_ANY = re.compile(rf"{_NAME.pattern}|\*")
_PHASE = re.compile(r"-?[a-z0-9][a-z0-9_-]{0,62}")
_WILD = {"*": r"[^.]+", ">": ".+"}
_CAPABILITY_CHARACTERS = 128
_OWN = "agent"

KINDS = (
    "run",
    "part",
    "mail",
    "topic",
    "agent",
    "dead",
    "ops",
    "lease",
    "barrier",
    "decision",
    "breaker",
    "limit",
    "llm",
    "line",
)
"""What there is in the log: the second token of its subjects."""


def name(value: str, what: str) -> str:
    """`value` itself if it is a name: 1-63 of `a-z 0-9 _ -`, the first a letter or digit. Raises InvalidName."""
    if not _NAME.fullmatch(value):
        raise InvalidName(f"{what} {value!r} is not a name: use 1 to 63 of a-z, 0-9, _ and -, first a letter or digit")
    return value


def phase_key(value: str | int) -> str:
    """A phase's key as text: a name, or a number that may be negative. Raises InvalidName."""
    text = str(value)
    if not _PHASE.fullmatch(text):
        raise InvalidName(f"phase key {value!r} is not a name or a number: use 1 to 63 of a-z, 0-9, _ and -")
    return text


def capability(value: str) -> str:
    """`value` itself if it is one or more names joined by dots, 128 characters at most. Raises InvalidName."""
    return _dotted(value, _NAME, "capability")


def mailbox(agent: str) -> str:
    """The capability of hearing what is told to one agent by name. Raises InvalidName."""
    return f"{_OWN}.{name(agent, 'agent')}.mail"


def subscription(agent: str, subscribed: str) -> str:
    """The capability of serving one subscription of an agent. Raises InvalidName."""
    return f"{_OWN}.{name(agent, 'agent')}.on.{name(subscribed, 'subscription')}"


def personal(instance: str, capability: str) -> str:
    """The capability of doing this as exactly that instance. Raises InvalidName."""
    return _dotted(f"{_OWN}.{name(instance, 'instance')}.at.{capability}", _NAME, "capability")


def versioned(version: str, capability: str) -> str:
    """The capability of doing this as exactly that version of an agent. Raises InvalidName."""
    token = re.sub("[^a-z0-9_-]", "_", version.lower())
    return _dotted(f"{_OWN}.{name(token, 'version')}.v.{capability}", _NAME, "capability")


def routed(versions: str, capability: str) -> str:
    """The capability of doing what a route gives to these versions of those who have it. Raises InvalidName."""
    # The words alone could be those of another range: `>=1` and `<1`.
    digest = hashlib.blake2b(versions.encode(), digest_size=4).hexdigest()
    words = re.sub("[^a-z0-9]+", "_", versions.lower()).strip("_")[:40] or "all"
    return _dotted(f"{_OWN}.{words}-{digest}.r.{capability}", _NAME, "capability")


def is_special(capability: str) -> bool:
    """Whether it is that of one instance, or of some versions, of those that have a capability."""
    return is_own(capability) and capability.split(".")[2:3] in (["at"], ["v"], ["r"])


def is_own(capability: str) -> bool:
    """Whether a capability is one agent's own, and nobody else's to offer."""
    return capability.partition(".")[0] == _OWN


def capability_token(value: str) -> str:
    """The capability as one token; also the name of its consumer."""
    return capability(value).replace(".", ":")


@lru_cache(maxsize=256)
def pattern(subject: str) -> re.Pattern[str]:
    """Matches in full the subjects that one with wildcards names: `*` is any one token, `>` at the end one or more."""
    tokens = [_WILD.get(token) or re.escape(token) for token in subject.split(".")]
    return re.compile(r"\.".join(tokens), re.DOTALL)


class Work(NamedTuple):
    """What a work subject says: the attempt that waits to be taken, and where it waits (`bus.rules.priority`).

    `sender` is a token: on whose account it waits.
    """

    capability: str
    run: str
    phase: str
    item: int | None
    attempt: int
    level: str = "normal"
    sender: str = "0"
    row: int = 0

    @property
    def attempt_alone(self) -> Work:
        """The same attempt, wherever it waits."""
        return Work(self.capability, self.run, self.phase, self.item, self.attempt)


class Subjects:
    """The subjects of one namespace: `bus` gives prefix `bus.`, stream `BUS`, work stream `BUS_WORK`."""

    def __init__(self, namespace: str = "bus") -> None:
        self.namespace = name(namespace, "namespace")
        self.stream = namespace.upper()
        self.work_stream = f"{self.stream}_WORK"
        self.payloads_bucket = f"{self.stream}_PAYLOADS"
        self.timers_stream = f"{self.stream}_TIMERS"
        self.leases_bucket = f"{self.stream}_LEASES"
        self.cache_stream = f"{self.stream}_CACHE"
        self.runs = f"{namespace}.run.*"
        self.agents = f"{namespace}.agent.*.*"
        self.dead_letters = f"{namespace}.dead.*"
        self.leases = f"{namespace}.lease.>"
        self.routes = f"{namespace}.ops.route.*"
        self.decisions = f"{namespace}.decision.*"
        self.limits_bucket = f"{self.stream}_LIMITS"
        self.breakers = f"{namespace}.breaker.*"
        self.all_work = f"{namespace}.work.>"
        self.all_timers = f"{namespace}.timer.>"
        self.all_rung = f"{namespace}.timer.rung.>"
        self.all_cached = f"{namespace}.cache.>"
        self.cached_of_all = f"{namespace}.cache.key.>"
        self.everyone = f"{namespace}.ping"
        self.beats = f"{namespace}.beat.*"
        self.roster = f"{namespace}.roster"
        # The server publishes what it has stored once more, under `live.`: what is seen there is in the log.
        self.live = f"live.{namespace}.>"

    def logged(self) -> list[str]:
        """What the log's stream stores. Pings and beats are not facts, so they are not among it."""
        return [f"{self.namespace}.{kind}.>" for kind in KINDS]

    def ours(self, subject: str) -> str:
        """The subject in this namespace that is called `subject` in its own."""
        return f"{self.namespace}.{subject.partition('.')[2]}"

    def run(self, run: str) -> str:
        return f"{self.namespace}.run.{name(run, 'run')}"

    def run_of(self, subject: str) -> str:
        """The run whose commits are on `subject`."""
        return subject.rpartition(".")[2]

    def agent(self, agent: str, instance: str) -> str:
        return f"{self.namespace}.agent.{name(agent, 'agent')}.{name(instance, 'instance')}"

    def dead(self, capability: str) -> str:
        return f"{self.namespace}.dead.{capability_token(capability)}"

    def part(self, run: str, phase: str, item: int | None) -> str:
        """Where partial results of a phase, or of one of its items, stand."""
        token = phase_key(phase) if item is None else f"{phase_key(phase)}:{item}"
        return f"{self.namespace}.part.{name(run, 'run')}.{token}"

    def parts(self, run: str) -> str:
        """All of a run's."""
        return f"{self.namespace}.part.{name(run, 'run')}.*"

    def topic(self, topic: str) -> str:
        """Where facts of a topic are published: a dotted name. Raises InvalidName."""
        return f"{self.namespace}.topic.{_dotted(topic, _NAME, 'topic')}"

    def topics(self, pattern: str) -> str:
        """Those topics: `*` stands for one name, `>` at the end for one or more. Raises InvalidName."""
        head, dot, last = pattern.rpartition(".")
        if last == ">" and (not dot or head):
            return (
                f"{self.namespace}.topic.{_dotted(head, _NAME_OR_ANY, 'topic')}.>"
                if dot
                else f"{self.namespace}.topic.>"
            )
        return f"{self.namespace}.topic.{_dotted(pattern, _NAME_OR_ANY, 'topic')}"

    def topic_of(self, subject: str) -> str:
        """The topic whose facts are on `subject`."""
        return subject.removeprefix(f"{self.namespace}.topic.")

    def is_topic(self, subject: str) -> bool:
        """Whether facts of a topic are on `subject`."""
        return subject.startswith(f"{self.namespace}.topic.")

    def again(self, capability: str) -> str:
        """What one subscription, that of the capability, is told once more."""
        return f"{self.namespace}.mail.{capability_token(capability)}"

    def ops(self, area: str) -> str:
        """What operators did."""
        return f"{self.namespace}.ops.{name(area, 'area')}"

    def skipped(self, schedule: str) -> str:
        """The occurrences of a schedule that were not started."""
        return f"{self.namespace}.ops.skipped.{name(schedule, 'schedule')}"

    def route(self, capability: str) -> str:
        """How operators have shared out the work of a capability."""
        return f"{self.namespace}.ops.route.{capability_token(capability)}"

    def lease(self, path: str) -> str:
        """Who got, gave back and lost what `path` names: `lock.deploy`, `leader.indexer`, `permit.gpu.2`."""
        for part in path.split("."):
            name(part, "lease")
        return f"{self.namespace}.lease.{path}"

    def barrier(self, barrier: str) -> str:
        return f"{self.namespace}.barrier.{name(barrier, 'barrier')}"

    def decision(self, decision: str) -> str:
        return f"{self.namespace}.decision.{name(decision, 'decision')}"

    def decision_of(self, subject: str) -> str:
        """The decision whose events are on `subject`."""
        return subject.rpartition(".")[2]

    def breaker(self, breaker: str) -> str:
        """The transitions of a breaker."""
        return f"{self.namespace}.breaker.{capability_token(breaker)}"

    def tally(self, breaker: str) -> str:
        """What processes tell each other of calls while some of them fail. Not stored."""
        return f"{self.namespace}.tally.{capability_token(breaker)}"

    def limit(self, limit: str) -> str:
        """What happened to a limit."""
        return f"{self.namespace}.limit.{capability_token(limit)}"

    def llm(self, provider: str) -> str:
        """The calls of a provider's language models."""
        return f"{self.namespace}.llm.{name(provider, 'provider')}"

    def named(self, subject: str) -> str:
        """The breaker or limit whose subject it is."""
        return subject.rpartition(".")[2].replace(":", ".")

    def work(self, work: Work) -> str:
        name(work.run, "run")
        phase_key(work.phase)
        token = work.phase if work.item is None else f"{work.phase}:{work.item}"
        place = f"{capability_token(work.capability)}.{work.level}.{work.sender}.{work.row}"
        return f"{self.namespace}.work.{place}.{work.run}.{token}.{work.attempt}"

    def work_for(self, capability: str) -> str:
        """All work that waits for a capability."""
        return f"{self.namespace}.work.{capability_token(capability)}.>"

    def queue(self, capability: str, level: str, row: int) -> str:
        """What of it waits at a level, in a row."""
        return f"{self.namespace}.work.{capability_token(capability)}.{level}.*.{row}.>"

    def astray(self, capability: str) -> list[str]:
        """What is too short to be in a queue: nobody of ours put it there."""
        return [f"{self.namespace}.work.{capability_token(capability)}{'.*' * tokens}" for tokens in range(4)]

    def sent(self, capability: str, level: str, sender: str) -> str:
        """What of it waits at a level on the account of a sender, whose token that is."""
        return f"{self.namespace}.work.{capability_token(capability)}.{level}.{sender}.>"

    def bell(self, capability: str) -> str:
        """Where instances hear that something waits in a queue they may not be asking at."""
        return f"{self.namespace}.bell.{capability_token(capability)}"

    def parse_work(self, subject: str) -> Work:
        """What the subject says. Raises MalformedMessage for anything `work()` would not have made."""
        tokens = subject.split(".")
        try:
            _, _, capability_part, level, sender, row, run, phase, attempt = tokens
            key, _, item = phase.partition(":")
            work = Work(
                capability_part.replace(":", "."),
                name(run, "run"),
                phase_key(key),
                _index(item),
                int(attempt),
                name(level, "level"),
                name(sender, "sender"),
                int(row),
            )
            same = self.work(work) == subject and work.attempt >= 1 and (work.item or 0) >= 0 and work.row >= 0
        except (InvalidName, ValueError) as error:
            raise MalformedMessage(f"{subject!r} is not a work subject: {error}") from error
        if not same:
            raise MalformedMessage(f"{subject!r} is not a work subject of namespace {self.namespace!r}")
        return work

    def timer(self, schedule: str, position: int) -> str:
        """What lets the server ring for the schedule that was made at a position of the log."""
        return f"{self.namespace}.timer.set.{name(schedule, 'schedule')}.{position}"

    def rung(self, schedule: str, position: int) -> str:
        """What the server stores when that schedule is due."""
        return f"{self.namespace}.timer.rung.{name(schedule, 'schedule')}.{position}"

    def parse_timer(self, subject: str) -> tuple[str, int]:
        """The schedule and the position that either of the two names. Raises MalformedMessage for anything else."""
        schedule, _, position = subject.removeprefix(f"{self.namespace}.timer.").partition(".")[2].partition(".")
        try:
            found = schedule, int(position)
            same = subject in (self.timer(*found), self.rung(*found))
        except (InvalidName, ValueError) as error:
            raise MalformedMessage(f"{subject!r} is not a timer's subject: {error}") from error
        if not same:
            raise MalformedMessage(f"{subject!r} is not a timer's subject of namespace {self.namespace!r}")
        return found

    def cached(self, capability: str, key: str = "*") -> str:
        """Where the output of a capability is found that was computed under this key; by default under any."""
        return f"{self.namespace}.cache.key.{capability_token(capability)}.{key}"

    def cached_at(self, capability: str, plan: str, phase: str, item: int | None) -> str:
        """What a capability has computed last at a place of a plan: all tasks share one place."""
        token = phase_key(phase) if item is None else f"{phase_key(phase)}:{item}"
        return f"{self.namespace}.cache.place.{capability_token(capability)}.{name(plan, 'plan')}.{token}"

    def line(self, capability: str, lane: int) -> str:
        """The line of work with a key in one lane of a capability (`bus.runs.lane`)."""
        return f"{self.namespace}.line.{capability_token(capability)}.{lane}"

    def parked(self, capability: str, token: str) -> str:
        """The line of one key, that of the token, behind work of it that died."""
        return f"{self.namespace}.line.{capability_token(capability)}.parked.{token}"

    def who(self, capability: str, *, ordered: bool = False) -> str:
        """Every live instance with the capability answers here; if there is none, the server says so at once.

        With `ordered`, those that serve its lanes.
        """
        return f"{self.namespace}.{'orders' if ordered else 'who'}.{capability_token(capability)}"

    def hand(self, capability: str, *, spare: bool = False) -> str:
        """Where an instance with the capability is handed work directly; one that comes after others, at `spare`."""
        return f"{self.namespace}.{'spare' if spare else 'hand'}.{capability_token(capability)}"

    def withdrawn(self, run: str) -> str:
        """Where it is said that nobody waits any more for the answer to a question that is not stored."""
        return f"{self.namespace}.withdrawn.{name(run, 'run')}"

    def ping(self, instance: str) -> str:
        return f"{self.namespace}.ping.{name(instance, 'instance')}"

    def beat(self, instance: str) -> str:
        return f"{self.namespace}.beat.{name(instance, 'instance')}"

    def rows(self, projection: str, build: str = "") -> str:
        """Where who keeps a projection is asked for its rows; or who keeps exactly that build. Raises InvalidName."""
        asked = f"{self.namespace}.rows.{name(projection, 'projection')}"
        return f"{asked}.{name(build.rpartition('/')[2], 'build')}" if build else asked

    def changed(self, projection: str) -> str:
        """Where it is told that rows have changed. Raises InvalidName."""
        return f"{self.namespace}.changed.{name(projection, 'projection')}"

    def halt(self, instance: str) -> str:
        """Where an instance is told that it need not go on."""
        return f"{self.namespace}.halt.{name(instance, 'instance')}"


def _dotted(value: str, part: re.Pattern[str], what: str) -> str:
    if len(value) > _CAPABILITY_CHARACTERS or not all(part.fullmatch(each) for each in value.split(".")):
        raise InvalidName(
            f"{what} {value!r} is not a dotted name: use a-z, 0-9, _ and - between dots, 128 characters at most"
        )
    return value


def live_copy(subject: str) -> str:
    """Where the server publishes once more what it has stored on `subject`."""
    return f"live.{subject}"


def _index(text: str) -> int | None:
    return int(text) if text else None
