"""Any command, at any time, on any plan: what must hold after each of them.

The machine knows the rules only from outside: it looks at states and events, never at how they were decided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bus.errors import Refused
from bus.problem import Problem
from bus.registry.presence import Held
from bus.rules import dead, inputs
from bus.rules.commands import (
    Answer,
    Begin,
    Cancel,
    Checkpoint,
    Command,
    Complete,
    Expire,
    Fail,
    GiveUp,
    Intend,
    Pause,
    Progress,
    Redrive,
    Report,
    Resume,
    Reuse,
    Revive,
    Rollback,
    Save,
    Settle,
    Signal,
    Skip,
    Take,
    Vouch,
)
from bus.rules.dead import DeadLetter
from bus.rules.decide import carry_out, decide
from bus.rules.events import (
    Cause,
    Commit,
    Event,
    PhaseAttemptFailed,
    PhaseCompleted,
    PhaseEffectIntended,
    PhaseFailed,
    PhaseReady,
    PhaseStarted,
    PhaseUndoing,
    ResultRefused,
    RunCancelled,
    RunRedriven,
    Source,
    body,
)
from bus.rules.folding import Folding, evolve, fold
from bus.rules.passes import taken_along
from bus.rules.plan import Approval, Phase, Plan, WaitFor
from bus.rules.references import ref
from bus.rules.retry import RetryPolicy
from bus.rules.run import SUCCEEDED, TERMINAL, Item, PhaseState, RunState
from bus.rules.timers import Kind, armed
from bus.rules.undoing import to_undo
from bus.rules.verify import violations
from bus.runs.halts import halts
from tests.driver import BEGAN_AT, RUN, through_the_log

Timed = tuple[str, int | None, Kind]

KEYS: list[str | int] = ["a", "b", -8, "c", 4, "d"]
# Most data fits what the plans below refer to; the rest leads nowhere, or to something that is not a list.
FITTING = [b'{"list":[1,2,3]}', b'{"list":[{"n":1},{"n":2}]}', b'{"list":[{"n":1},7]}', b'{"list":[]}']
OUTPUTS = [*FITTING * 2, b"null", b'"text"', b"[]", b'{"list":{"n":0}}']
INSTANCES = ["one", "two", ""]
CAUSES: list[Cause] = [
    *("error", "timed_out", "crashed", "frozen", "blocked", "forgotten", "handed_back"),
    *("unclaimed", "starved"),
]
POLICIES = [RetryPolicy(), RetryPolicy(transient=1, dependency=0, unknown=0, lost=0), RetryPolicy(lost=1, max_s=0.0)]

CHILD = Plan("child", phases=[Phase("x", "do")], timeout_s=60.0)
SIGNALS = st.sampled_from(["go", "stop"])

problems = st.one_of(
    st.sampled_from(
        [
            Problem("handler_error", "down", "transient"),
            Problem("handler_error", "bug", "unknown"),
            Problem("rejected", "no", "permanent"),
            Problem("lost", "gone", "unknown"),
            Problem("timed_out", "late", "transient"),
            Problem("handed_back", "stopped", "transient"),
        ]
    ),
    st.builds(
        lambda wait: Problem("retry_asked", "later", "transient", retry_after_s=wait),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """A small plan: every phase may wait for, and refer to, those before it."""
    phases: list[Phase] = []
    with_output: list[str] = []
    given: object
    for key in KEYS[: draw(st.integers(1, len(KEYS)))]:
        earlier = [phase.key for phase in phases]
        after = draw(st.lists(st.sampled_from(earlier), max_size=2, unique=True)) if earlier else []
        source = f"{draw(st.sampled_from(['input', *with_output]))}.list"
        kind = draw(st.sampled_from(["plain", "plain", "each", "each", "gate", "signal", "child"]))
        tolerant: Any = {
            "optional": draw(st.booleans()),
            "when": draw(st.sampled_from([None, None, source, f"not {source}", f"{source} == []"])),
            "total_timeout_s": draw(st.sampled_from([None, 40.0])),
        }
        undo = draw(st.sampled_from([None, "undo"]))
        if kind == "signal":
            phases.append(Phase(key, after=after, wait_for=WaitFor(draw(SIGNALS), 60.0), **tolerant))
            with_output.append(str(key))
            continue
        if kind == "child":
            given = draw(st.sampled_from([None, {"x": ref(source)}]))
            phases.append(Phase(key, input=given, after=after, plan=CHILD, **tolerant))
            with_output.append(str(key))
            continue
        if kind == "gate":
            on_expiry: Any = draw(st.sampled_from(["reject", "approve", "wait", "escalate"]))
            gate = Approval(
                expires_s=60.0,
                on_expiry=on_expiry,
                who=draw(st.sampled_from([(), ("ann", "ben")])),
                escalate_to=("carol",) if on_expiry == "escalate" else (),
            )
            phases.append(Phase(key, after=after, approval=gate, **tolerant))
            continue
        retry, queue_s = draw(st.sampled_from(POLICIES)), draw(st.sampled_from([30.0, 3600.0]))
        if kind == "plain":
            given = draw(st.sampled_from([None, None, {"x": ref(source)}]))
            phase = Phase(
                key, "do", input=given, after=after, retry=retry, queue_timeout_s=queue_s, compensate=undo, **tolerant
            )
        else:
            given = draw(st.sampled_from([None, None, {"x": ref("item")}, {"x": [ref("item.n")]}, {"x": ref(source)}]))
            width = draw(st.sampled_from([None, 1, 2]))
            phase = Phase(
                key,
                "do",
                given,
                each=ref(source),
                width=width,
                after=after,
                retry=retry,
                queue_timeout_s=queue_s,
                fail_fast=draw(st.booleans()),
                compensate=undo,
                **tolerant,
            )
        phases.append(phase)
        with_output.append(str(key))
    timeout_s = draw(st.sampled_from([50.0, 86_400.0, 86_400.0]))
    can_undo = any(phase.compensate for phase in phases)
    on_failure: Any = draw(st.sampled_from(["keep", "rollback"])) if can_undo else "keep"
    return Plan("plan", phases=phases, timeout_s=timeout_s, on_failure=on_failure)


SOURCE = Source("run-0", "a", 1, BEGAN_AT)
keys = st.sampled_from([*map(str, KEYS), "nowhere"])
items = st.sampled_from([None, None, 0, 1, 2, 3, -1])
attempts = st.integers(0, 5)
instances = st.sampled_from(INSTANCES)
raws = st.sampled_from(OUTPUTS).map(msgspec.Raw)
maybe_raws = st.one_of(st.just(msgspec.UNSET), raws)
outcomes = st.one_of(raws, raws, problems, st.none())
commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(Take, keys, items, attempts, st.just("agent"), instances, st.sampled_from([1.0, 60.0])),
    st.builds(Complete, keys, items, attempts, instances, raws),
    st.builds(Fail, keys, items, attempts, instances, problems, st.sampled_from(CAUSES)),
    st.builds(Intend, keys, items, attempts, instances, SIGNALS),
    st.builds(Settle, keys, items, attempts, instances, SIGNALS, maybe_raws),
    st.builds(Vouch, keys, items, SIGNALS, st.just("ann"), maybe_raws),
    st.builds(Save, keys, items, attempts, instances, raws),
    st.builds(Progress, keys, items, attempts, instances, st.floats(), st.just("note")),
    st.builds(
        Answer,
        keys,
        st.booleans(),
        st.sampled_from(["ann", "dan"]),
        expired=st.booleans(),
        gate=st.sampled_from([None, None, 1, 2]),
    ),
    st.builds(Redrive, st.just("ann"), st.lists(keys, max_size=2).map(tuple), st.booleans()),
    st.builds(Skip, keys, st.just("ann"), output=maybe_raws),
    st.builds(Signal, SIGNALS, st.just("ann"), raws),
    st.builds(GiveUp, keys),
    st.builds(Report, keys, st.sampled_from(["", "another"]), raws),
    st.builds(Checkpoint, SIGNALS, st.just("ann")),
    st.builds(Rollback, st.just("ann"), st.one_of(st.none(), keys), st.one_of(st.none(), SIGNALS)),
    st.just(Pause("ann")),
    st.just(Resume("ann")),
    st.builds(Begin, plans(), raws, st.one_of(st.none(), keys), st.one_of(st.none(), keys)),
    st.builds(Cancel, st.just("ann"), rollback=st.booleans()),
    st.just(Expire()),
)


def snapshot(state: RunState | None) -> bytes:
    """The whole of a state as bytes, so that nothing in it can change unseen."""
    return msgspec.json.encode(state, enc_hook=lambda output: output.raw)


def is_open(phase: PhaseState | Item) -> bool:
    return phase.status not in TERMINAL


def held(state: RunState) -> set[tuple[str, Held]]:
    """Every attempt under way, with its instance."""
    return {
        (attempt.instance, Held(state.run, phase.key, item.index, attempt.number))
        for phase, item, attempt in state.held()
        if state.is_open
    }


class RunMachine(RuleBasedStateMachine):
    state: RunState

    def __init__(self) -> None:
        super().__init__()
        self.now = BEGAN_AT
        self.commits: list[Commit] = []
        self.sent: list[Command] = []
        self.attempts: dict[tuple[str, int | None], int] = {}
        self.letters: list[DeadLetter] = []
        self.accepted: Counter[tuple[int, str, int | None]] = Counter()

    # What happens

    @initialize(plan=plans(), given=st.sampled_from([*FITTING * 3, b"null"]))
    def begin(self, plan: Plan, given: bytes) -> None:
        ahead, happened = carry_out(None, Begin(plan, msgspec.Raw(given)), run=RUN, now=self.now)
        commit = through_the_log(Commit(RUN, "1", self.now, 1, happened))
        self.state = evolve(None, Commit(RUN, "1", self.now, 1, happened[:1]))
        self.watch(happened[1:])
        self.state = evolve(None, commit)
        assert snapshot(ahead) == snapshot(self.state)
        self.letters += dead.letters(None, commit)
        self.commits.append(commit)

    @precondition(lambda self: self.state.is_open)
    @rule(steps=st.lists(st.tuples(st.integers(0, 99), instances, outcomes), min_size=1, max_size=8))
    def go_on(self, steps: list[tuple[int, str, msgspec.Raw | Problem | None]]) -> None:
        """Things go as they should: open work is taken or ends, and gates are answered."""
        for number, instance, outcome in steps:
            choices = list(self.open_places())
            if not choices:
                return
            key, item = choices[number % len(choices)]
            if self.state.paused_at is not None:
                assert self.fire(Resume("ann"))
            assert self.fire(self.next_command(key, item, instance, outcome))

    def open_places(self) -> Iterator[tuple[str, Item | None]]:
        for key, phase in self.state.phases.items():
            if phase.status == "waiting":
                yield key, None
            yield from ((key, item) for item in phase.items if item.status in {"ready", "in_progress"})

    def next_command(
        self, key: str, item: Item | None, instance: str, outcome: msgspec.Raw | Problem | None
    ) -> Command:
        if item is None:
            if child := self.state.phases[key].child:
                return Report(key, child, outcome if outcome is not None else msgspec.Raw(b"{}"))
            awaited = self.state.plan.graph[key].phase.signal
            if awaited is not None:
                return Signal(awaited.signal, "ann", outcome if isinstance(outcome, msgspec.Raw) else msgspec.Raw(b"1"))
            return Answer(key, not isinstance(outcome, Problem), "ann")
        if item.holder is None and self.now >= self.state.deadline_at:
            return Expire()
        if item.holder is None:
            where = (key, item.index, item.attempt, _capability(self.state, key), "agent", instance, 60.0)
            if instance == "two" and isinstance(outcome, msgspec.Raw):
                return Take(*where, reuse=Reuse(outcome, SOURCE))
            return Take(*where)
        where = (key, item.index, item.attempt, item.holder.instance)
        match outcome:
            case None:
                return Progress(*where, 0.5, "half way")
            case Problem():
                return Fail(*where, outcome)
            case output:
                return Complete(*where, output)

    @rule(data=st.data(), command=commands, near=st.booleans())
    def anything(self, data: st.DataObject, command: Command, near: bool) -> None:
        """Things go any way at all: any command, about any place or one that is nearly right."""
        places = list(self.open_places())
        if near and places and isinstance(command, Take | Complete | Fail | Progress | Intend | Settle | Save | Vouch):
            key, item = data.draw(st.sampled_from(places))
            if item is not None:
                command = msgspec.structs.replace(command, phase=key, item=item.index)
                if not isinstance(command, Vouch):
                    attempt = item.attempt + data.draw(st.sampled_from([-1, 0, 0, 1]))
                    command = msgspec.structs.replace(command, attempt=attempt)
                if item.holder is not None and not isinstance(command, Vouch) and data.draw(st.booleans()):
                    command = msgspec.structs.replace(command, instance=item.holder.instance)
        self.fire(command)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def something_once_more(self, data: st.DataObject) -> None:
        self.fire(data.draw(st.sampled_from(self.sent)))

    @precondition(lambda self: list(self.held_items()))
    @rule(data=st.data(), effect=SIGNALS, output=maybe_raws, saved=raws)
    def do_something_outside(self, data: st.DataObject, effect: str, output: Any, saved: msgspec.Raw) -> None:
        key, item, instance = data.draw(st.sampled_from(list(self.held_items())))
        where = (key, item.index, item.attempt, instance)
        assert self.fire(Save(*where, saved))
        if effect not in item.effects:
            assert self.fire(Intend(*where, effect))
        elif effect in item.unknown:
            assert self.fire(Settle(*where, effect, output))

    def held_items(self) -> Iterator[tuple[str, Item, str]]:
        for phase, item, attempt in self.state.held():
            yield phase.key, item, attempt.instance

    @precondition(lambda self: not self.state.is_open and self.state.rollback is not None)
    @rule()
    def go_on_undoing(self) -> None:
        assert self.fire(Redrive("ann"))
        assert self.state.rollback is not None and self.state.is_open

    @precondition(lambda self: not self.state.is_open and self.state.status != "completed")
    @precondition(lambda self: not (self.state.rollback and self.state.rollback.left))
    @rule(data=st.data(), some=st.booleans())
    def redrive(self, data: st.DataObject, some: bool) -> None:
        left = [key for key, phase in self.state.phases.items() if not phase.lets_pass]
        # A run that passed its deadline has failed, although all that it gave up may have been optional.
        chosen = data.draw(st.lists(st.sampled_from(left), unique=True)) if some and left else []
        assert self.fire(Redrive("ann", tuple(chosen)))

    @precondition(lambda self: any(dead.is_open(each, self.state) for each in self.letters))
    @rule(data=st.data(), given=st.one_of(st.just(msgspec.UNSET), raws))
    def revive(self, data: st.DataObject, given: msgspec.Raw | msgspec.UnsetType) -> None:
        """The work of one letter goes on; who asks once more finds that it has."""
        letter = data.draw(st.sampled_from([each for each in self.letters if dead.is_open(each, self.state)]))
        command = Revive(
            by="ann",
            letter=dead.name_of(letter),
            phase=letter.phase,
            item=letter.item,
            attempt=letter.attempt,
            passes=letter.passes,
            input=given,
        )
        # A later phase that died of what this one gave begins anew with it; other items of this one stay as they are.
        later = set(taken_along(self.state, [letter.phase])) - {letter.phase}
        others = [each for each in self.letters if each is not letter and dead.is_open(each, self.state)]
        others = [each for each in others if each.phase not in later]
        if self.fire(command):
            assert not self.fire(command)
            assert dead.standing(letter, self.state) in {"redriven", "died_again"}
            if not letter.undoes:
                # A compensation goes on with its whole rollback.
                assert [each for each in others if dead.is_open(each, self.state)] == others

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        begun = [key for key, phase in self.state.phases.items() if phase.status != "pending"]
        if begun and not (self.state.is_open and self.state.rollback is not None and self.state.rollback.left):
            assert self.fire(Rollback("ann", data.draw(st.sampled_from(begun))))

    @precondition(lambda self: self.state.is_open and not (self.state.rollback and self.state.rollback.left))
    @rule()
    def cancel_and_undo(self) -> None:
        """All that is open is cancelled at once; the run is when what it did is undone, however that goes on."""
        assert self.fire(Cancel("ann", "enough", rollback=True))
        if self.state.is_open:
            assert self.state.rollback is not None and self.state.rollback.cancels
            assert [key for key, phase in self.state.phases.items() if is_open(phase)] == [self.state.rollback.left[0]]
        else:
            assert (self.state.status, to_undo(self.state, self.state.phases)) == ("cancelled", ())

    @precondition(lambda self: not self.state.is_open and not (self.state.rollback and self.state.rollback.left))
    @rule(data=st.data())
    def do_again(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(list(self.state.phases)), unique=True))
        assert self.fire(Redrive("ann", tuple(chosen), afresh=True))

    @rule(seconds=st.sampled_from([0.001, 1.0, 61.0, 4000.0]))
    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def fire(self, command: Command) -> bool:
        """Decide, store, read back and fold. Whether something happened."""
        self.sent.append(command)
        before = snapshot(self.state)
        try:
            ahead, happened = carry_out(self.state, command, run=RUN, now=self.now)
        except Refused as refused:
            assert refused.reason
            assert snapshot(self.state) == before
            return False
        assert happened, "what is not refused leads to something"
        commit = Commit(RUN, str(len(self.commits)), self.now, len(self.commits) + 1, happened)
        read = through_the_log(commit)
        assert msgspec.json.encode(body(read.events)) == msgspec.json.encode(body(happened))
        self.watch(happened)
        after = evolve(self.state, read)
        assert snapshot(self.state) == before, "a fold leaves the state it is given as it is"
        assert snapshot(ahead) == snapshot(after), "what was decided on is what the log will say"
        self.watch_halts(after, happened)
        letters = dead.letters(self.state, commit)
        assert len(letters) == sum(1 for event in happened if self.is_given_up_work(event))
        assert all(dead.is_open(letter, after) or after.phases[letter.phase].undoing for letter in letters)
        self.letters += letters
        names = [dead.name_of(each) for each in self.letters]
        assert len(set(names)) == len(names), "a death has one letter"
        assert {each.earlier for each in letters} <= {"", *names}
        standing = [(each.phase, each.item) for each in self.letters if dead.is_open(each, after)]
        assert len(set(standing)) == len(standing), "work has one open letter"
        if any(isinstance(event, ResultRefused) for event in happened):
            assert len(happened) == 1
            assert len(set(after.late)) == len(after.late) == len(self.state.late) + 1, "each is recorded once"
            counted = msgspec.structs.replace(
                after, events=self.state.events, position=self.state.position, late=self.state.late
            )
            assert snapshot(counted) == before
        self.commits.append(read)
        self.state = after
        return True

    def watch(self, happened: Sequence[Event]) -> None:
        """Look at every event alone: what it may change, and what it may not."""
        folding = Folding(self.state)
        assert folding.state is not None
        for event in happened:
            before = {key: (phase.status, list(phase.items)) for key, phase in folding.state.phases.items()}
            rollback = folding.state.rollback
            folding.apply([event], self.now)
            self.watch_attempts(event, folding.state)
            if isinstance(event, RunCancelled) and rollback is not None and rollback.cancels and not rollback.left:
                assert not to_undo(folding.state, folding.state.phases), "all that it did is undone"
            # A redrive opens again what did not succeed, or what it names; nothing else opens what has ended.
            final = TERMINAL
            if isinstance(event, RunRedriven):
                final = frozenset() if event.afresh else SUCCEEDED
            if isinstance(event, PhaseUndoing):
                final = frozenset()
            for key, (status, were) in before.items():
                phase = folding.state.phases[key]
                assert status not in final or phase.status == status, f"{key} was {status}, is {phase.status}"
                for was, now in zip(were, phase.items, strict=False):
                    # What became of an effect may be found out later.
                    as_was = msgspec.structs.replace(now, effects=was.effects)
                    assert was.status not in final or was == as_was, f"{key}: an item that had ended has changed"
                    if type(event) not in (PhaseEffectIntended, RunRedriven, PhaseUndoing):
                        assert set(now.effects) <= set(was.effects), f"{key}: an effect without an intention"

    def watch_halts(self, after: RunState, happened: Sequence[Event]) -> None:
        """Whoever loses an attempt is told, unless it has handed in its result."""
        lost = held(self.state) - held(after)
        done = {(each.phase, each.item, each.attempt) for each in happened if isinstance(each, PhaseCompleted)}
        told = {
            (instance, each)
            for instance, halt in halts(self.state, after, happened).items()
            for each in halt.held
            if halt.reason
        }
        assert told == {(who, each) for who, each in lost if (each.phase, each.item, each.attempt) not in done}

    def watch_attempts(self, event: Event, state: RunState) -> None:
        match event:
            case PhaseReady(phase=phase, item=item, attempt=attempt):
                latest = self.attempts.get((phase, item), 0)
                waited = self.state.paused_at is not None and attempt == latest
                assert waited or attempt > latest, "an attempt's number is used once"
                self.attempts[phase, item] = attempt
            case (
                PhaseStarted(phase=phase, item=item, attempt=attempt)
                | PhaseAttemptFailed(phase=phase, item=item, attempt=attempt)
            ):
                assert attempt == self.attempts[phase, item]
            case PhaseCompleted(phase=phase, item=item, attempt=int(attempt)):
                assert attempt == self.attempts[phase, item]
                work = state.passes, phase if state.phases[phase].undoing is None else f"undo {phase}", item
                self.accepted[work] += 1
                # A compensation that failed may be tried again: what counts then is in the rollback that begins anew.
                assert self.accepted[work] == 1, "one result of a piece of work counts"

    def is_given_up_work(self, event: Event) -> bool:
        """Of an `each` phase that has been opened, the items are the work."""
        if not isinstance(event, PhaseFailed):
            return False
        node = self.state.plan.graph[event.phase]
        undoing = self.state.phases[event.phase].undoing is not None
        is_sum = (
            not undoing
            and event.item is None
            and node.each is not None
            and event.problem.code in {"items_failed", "expired"}
        )
        return node.phase.capability is not None and not is_sum

    def statuses(self) -> dict[str, str]:
        return {key: phase.status for key, phase in self.state.phases.items()}

    # What holds

    @invariant()
    def counters_equal_a_recount(self) -> None:
        assert self.state.open_phases == sum(map(is_open, self.state.phases.values()))
        for phase in self.state.phases.values():
            assert phase.open_items == sum(map(is_open, phase.items)), phase.key
            pending = [item for item in phase.items if item.status == "pending"]
            assert (phase.pending, list(phase.waiting())) == (len(pending), pending), phase.key
        assert self.state.events == sum(len(commit.events) for commit in self.commits)
        assert self.state.position == len(self.commits)

    @invariant()
    def a_run_is_what_its_phases_are(self) -> None:
        statuses = set(self.statuses().values())
        assert self.state.is_open == bool(statuses - TERMINAL)
        all_pass = all(phase.lets_pass for phase in self.state.phases.values())
        # A run that ran out of time has failed, even if all that failed with it was optional.
        has_expired = self.state.problem is not None and self.state.problem.code == "expired"
        assert (self.state.status == "completed") == (all_pass and not has_expired)
        assert all(phase.lets_pass for phase in self.state.phases.values() if phase.status in SUCCEEDED)
        assert (self.state.status == "failed") == (self.state.problem is not None)
        assert self.state.is_open == (self.state.ended_at is None)

    @invariant()
    def what_a_failed_run_did_is_undone_or_somebody_has_to_see_to_it(self) -> None:
        state = self.state
        if state.status != "failed" or state.plan.on_failure == "keep" or state.rollback is not None:
            return
        assert not to_undo(state, state.phases)

    @invariant()
    def an_attempt_is_open_only_while_it_is_held(self) -> None:
        held = [attempt for _, _, attempt in self.state.held()]
        under_way = [
            attempt
            for phase in self.state.phases.values()
            for item in phase.items
            for attempt in item.attempts
            if attempt.ended_at is None
        ]
        assert under_way == held

    @invariant()
    def a_run_is_never_stuck(self) -> None:
        timers: set[Timed] = {(timer.phase, timer.item, timer.kind) for timer in armed(self.state)}
        if not self.state.is_open:
            assert not timers
            return
        assert ("", None, "run") in timers
        assert set(self.statuses().values()) & {"ready", "in_progress", "waiting"}
        for key, phase in self.state.phases.items():
            match phase.status:
                case "pending":
                    needs = self.state.plan.graph[key].needs
                    waits = self.state.rollback is not None or any(is_open(self.state.phases[need]) for need in needs)
                    assert waits, f"{key} waits for nothing"
                case "waiting":
                    assert (key, None, "expiry") in timers
                case "ready" | "in_progress":
                    self.every_item_can_end(phase, timers)

    def every_item_can_end(self, phase: PhaseState, timers: set[Timed]) -> None:
        width = self.state.plan.graph[phase.key].phase.width or len(phase.items)
        counts = Counter(item.status for item in phase.items)
        under_way = counts["ready"] + counts["in_progress"]
        assert 0 < under_way <= width
        assert under_way == width or not counts["pending"], "an item waits although there is room"
        for item in phase.items:
            where = (phase.key, item.index)
            if item.status == "ready" and self.state.paused_at is not None:
                continue
            if item.status == "ready":
                assert inputs.order(self.state, *where).attempt == item.attempt
                assert (*where, "unclaimed") in timers
            elif item.status == "in_progress":
                assert item.holder is not None
                assert item.holder.number == item.attempt
                assert (*where, "deadline") in timers

    # What follows

    @rule(data=st.data())
    def any_split_folds_to_the_same(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.commits)))
        first = fold(self.commits[:at])
        before = snapshot(first)
        assert fold(self.commits[at:], first) == self.state
        assert snapshot(first) == before
        assert fold(self.commits) == self.state

    def teardown(self) -> None:
        if self.commits:
            assert not list(violations(self.commits, self.now, grace=timedelta(days=36_500)))
            self.to_the_end("if everybody does what is left to do", self.next_step)
            self.to_the_end("if nobody does anything and the timers act", self.next_timer)

    def to_the_end(self, sentence: str, step: Callable[[RunState, datetime], tuple[Command, datetime]]) -> None:
        state, now = self.state, self.now
        for _ in range(500):
            if not state.is_open:
                return
            command, now = step(state, now)
            happened = decide(state, command, run=RUN, now=now)
            state = evolve(state, Commit(RUN, "", now, state.position + 1, happened))
        raise AssertionError(f"a run ends {sentence}")

    def next_step(self, state: RunState, now: datetime) -> tuple[Command, datetime]:
        if state.paused_at is not None:
            return Resume("ann"), now
        if now >= state.deadline_at:
            return Expire(), now
        for phase in state.phases.values():
            if phase.status == "waiting" and phase.child:
                return Report(phase.key, phase.child, msgspec.Raw(b"{}")), now
            if phase.status == "waiting" and (awaited := state.plan.graph[phase.key].phase.signal) is not None:
                return Signal(awaited.signal, "ann", msgspec.Raw(b"{}")), now
            if phase.status == "waiting":
                return Answer(phase.key, True, "ann"), now
            for item in phase.items:
                if item.holder is not None:
                    return Complete(phase.key, item.index, item.attempt, item.holder.instance, msgspec.Raw(b"[]")), now
                if item.status == "ready":
                    capability = _capability(state, phase.key)
                    return Take(phase.key, item.index, item.attempt, capability, "agent", "one", 60.0), now
        raise AssertionError("an open run has a next step")

    def next_timer(self, state: RunState, now: datetime) -> tuple[Command, datetime]:
        for timer in sorted(armed(state)):
            command = timer.command(state)
            if command is not None:
                return command, max(now, timer.at)
        raise AssertionError("an open run has a timer")


TestRunMachine = RunMachine.TestCase
TestRunMachine.settings = settings(deadline=None, max_examples=100, stateful_step_count=40, report_multiple_bugs=False)


def _capability(state: RunState | None, key: str) -> str:
    assert state is not None
    node = state.plan.graph.get(key)
    return (state.capability(key) or "") if node is not None else ""
