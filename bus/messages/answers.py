"""Answers: what came of work, as whoever waits for it gets it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import msgspec

from bus.errors import MalformedMessage, NotFound, TimedOut, WorkFailed
from bus.format.messages import MESSAGES
from bus.problem import Problem
from bus.rules.events import is_ending
from bus.rules.run import RunState
from bus.runs.steering import Steering


class Answers(Steering):
    """The verbs about what came of it; a part of the client."""

    async def result(self, run: str, *, timeout_s: float) -> RunState:
        """The run once it has ended. Raises TimedOut if that takes longer; the run goes on. Raises NotFound."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._ended(run)
        except TimeoutError:
            raise TimedOut(f"run {run} has not ended within {timeout_s:g} s") from None

    async def _ended(self, run: str) -> RunState:
        state = await self.runs.load(run)
        async with aclosing(self.ledger.follow(run, after=state.position)) as commits:
            while state.is_open:
                commit = await anext(commits)
                if any(is_ending(event) for event in commit.events):
                    state = await self.runs.load(run)
        return state

    def output(self, state: RunState, phase: str, gives: Any = None) -> Any:
        """A phase's output. Raises WorkFailed if it has none, MalformedMessage if it is not a `gives`."""
        return answer_of(state, phase, gives)


def answer_of(state: RunState, phase: str, gives: Any = None) -> Any:
    """A phase's output. Raises WorkFailed, MalformedMessage."""
    return decoded(output_of(state, phase), gives, f"the output of {phase!r}")


def output_of(state: RunState, phase: str) -> msgspec.Raw:
    done = state.phases.get(phase)
    if done is None:
        raise NotFound(f"run {state.run} has no phase {phase!r}")
    if done.output is None:
        problem = done.problem or state.problem or Problem("expired", f"{phase} is {done.status}", "permanent")
        raise WorkFailed(state.run, problem)
    return done.output.raw


def decoded(output: msgspec.Raw, gives: Any, what: str) -> Any:
    if gives is None:
        return msgspec.json.decode(output)
    try:
        return MESSAGES.decode(output, gives)
    except msgspec.ValidationError as error:
        wanted = getattr(gives, "__name__", repr(gives))
        raise MalformedMessage(f"{what} is not what was asked for ({wanted}): {error}") from error
