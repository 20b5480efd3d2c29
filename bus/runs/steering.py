"""Steering: what somebody decides about a run. Each decision is a commit of the run, with its maker's name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import msgspec

from bus.errors import MalformedMessage, PlanError, Refused
from bus.rules.commands import (
    Answer,
    Begin,
    Cancel,
    Checkpoint,
    Command,
    Pause,
    Redrive,
    Resume,
    Rollback,
    Signal,
    Skip,
    Vouch,
)
from bus.rules.effects import Done, NotDone
from bus.rules.plan import Key, Plan
from bus.rules.run import SUCCEEDED, RunState
from bus.runs.ledger import Ledger
from bus.runs.runs import Runs

# For each byte a letter: 32 letters without those that are taken for others, so that none comes more often.
_LETTERS = b"0123456789abcdefghjkmnpqrstvwxyz" * 8


class Steering:
    """The verbs for one run at a time; each returns the run as it is with the decision.

    All raise Refused, with the reason, if the run's present state does not allow it; NotFound, TooLarge, Unavailable.
    """

    ledger: Ledger
    runs: Runs

    async def approve(self, run: str, phase: Key, *, by: str, comment: str = "", gate: int | None = None) -> RunState:
        """Open a gate. `gate` is the pass whose gate was looked at (`PhaseState.gate`): a newer one is not answered."""
        return await self._decide(run, Answer(str(phase), True, by, comment, gate=gate))

    async def reject(self, run: str, phase: Key, *, by: str, comment: str = "", gate: int | None = None) -> RunState:
        """Close a gate for good: the phase fails."""
        return await self._decide(run, Answer(str(phase), False, by, comment, gate=gate))

    async def cancel(self, run: str, *, by: str, reason: str = "", rollback: bool = False) -> RunState:
        """Stop a run. What is under way is not waited for; its results are refused.

        With `rollback`, what it did is undone first, last first, by the compensations of its phases (as in `rollback`);
        the run ends as cancelled when all is undone, and as failed if something can't be.
        """
        return await self._decide(run, Cancel(by, reason, rollback))

    async def pause(self, run: str, *, by: str, reason: str = "") -> RunState:
        """Hold a run: what is under way may end, nothing more is taken. Deadlines of what is under way still count."""
        return await self._decide(run, Pause(by, reason))

    async def resume(self, run: str, *, by: str) -> RunState:
        """Let a paused run go on."""
        return await self._decide(run, Resume(by))

    async def redrive(self, run: str, *, by: str, phases: Key | Iterable[Key] = ()) -> RunState:
        """Try again what failed: `phases`, or all that did not succeed. The run may still be going on."""
        return await self._decide(run, Redrive(by, _keys(phases)))

    async def rerun(self, run: str, *, by: str, phases: Key | Iterable[Key] = ()) -> RunState:
        """Do again what an ended run has done: from `phases` on, or from the beginning. Nothing is undone first."""
        return await self._decide(run, Redrive(by, _keys(phases), afresh=True))

    async def skip(self, run: str, phase: Key, *, by: str, reason: str = "", output: Any = msgspec.UNSET) -> RunState:
        """Let a phase pass without its work, with `output` in place of its own; what needs it goes on."""
        given = output if output is msgspec.UNSET else as_json(output)
        return await self._decide(run, Skip(str(phase), by, reason, given))

    async def signal(self, run: str, signal: str, data: object = None, *, by: str) -> RunState:
        """Tell a run what a phase waits for, or will (`Phase(wait_for=...)`); `data` is that phase's output."""
        return await self._decide(run, Signal(signal, by, as_json(data)))

    async def settle(
        self,
        run: str,
        phase: Key,
        effect: str,
        found: Done | NotDone,
        *,
        by: str,
        item: int | None = None,
        reason: str = "",
    ) -> RunState:
        """Say what became of an effect that nobody knew of: `Done(outcome)`, or `NotDone()`: it may be done again.

        The next attempt acts on it: redrive the phase if it has failed.
        """
        outcome = as_json(found.outcome) if isinstance(found, Done) else msgspec.UNSET
        return await self._decide(run, Vouch(str(phase), item, effect, by, outcome, reason))

    async def checkpoint(self, run: str, name: str, *, by: str) -> RunState:
        """Name this moment of a run, to go back to it."""
        return await self._decide(run, Checkpoint(name, by))

    async def rollback(
        self, run: str, *, by: str, before: Key | None = None, checkpoint: str | None = None, reason: str = ""
    ) -> RunState:
        """Go back to before a phase, or to a checkpoint: undo what was done since, last first, then do it again."""
        return await self._decide(run, Rollback(by, None if before is None else str(before), checkpoint, reason))

    async def fork(
        self, run: str, *, at: int | None = None, plan: Plan | None = None, as_run: str | None = None
    ) -> RunState:
        """A new run with the same input that takes over what the other had done at a position (now, unless told).

        With `plan` it goes on by another plan: outcomes are taken over of phases that both have.
        """
        state = await self.runs.load(run) if at is None else await self.ledger.as_of(run, at)
        chosen = plan or state.plan
        if not isinstance(chosen, Plan):
            raise PlanError(f"a plan is a Plan, not {chosen!r:.60}")
        adopted = {
            key: phase.output.raw if phase.output is not None else msgspec.Raw(b"null")
            for key, phase in state.phases.items()
            if phase.status in SUCCEEDED and key in chosen.graph
        }
        if not adopted:
            raise Refused(f"run {run} has done nothing by then that could be taken over: start a new one")
        name = as_run or new_run(chosen)
        begin = Begin(chosen, state.input.raw, adopted=adopted, origin=f"{run}@{state.position}")
        return (await self.runs.submit(name, begin)).state

    async def _decide(self, run: str, command: Command) -> RunState:
        return (await self.runs.submit(run, command)).state


def _keys(phases: Key | Iterable[Key]) -> tuple[str, ...]:
    """Those of several phases, or of one: text is a sequence too, and nobody means its letters."""
    return (str(phases),) if isinstance(phases, Key) else tuple(map(str, phases))


def new_run(plan: Plan) -> str:
    """An id for a run of a plan."""
    return new_id(plan.name[:50])


def new_id(name: str) -> str:
    """An id nobody else makes, that begins with a name."""
    return f"{name}-{os.urandom(10).translate(_LETTERS).decode()}"


def as_json(value: object) -> msgspec.Raw:
    """Raises MalformedMessage for what has no JSON form."""
    try:
        return msgspec.Raw(msgspec.json.encode(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise MalformedMessage(f"the input can't be written as JSON: {error}") from error
