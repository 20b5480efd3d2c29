"""A problem: the one shape of an error, in events, answers, dead letters, logs, `--json` output and HTTP (RFC 9457)."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

_URN = "urn:phasebus:problem:"
_DEEPEST = 10

ErrorClass = Literal["dependency", "configuration", "transient", "permanent", "unknown"]
"""Who can do something about it, which decides whether and when to try again (`bus.rules.retry`)."""

RETRYABLE: frozenset[ErrorClass] = frozenset({"dependency", "transient", "unknown"})
"""The classes of what may go well another time. Whether it is tried again is the policy's business
(`bus.rules.retry`).
"""

Code = Literal[
    "handler_error",  # the handler raised
    "rejected",  # the handler or an approver said no, for good
    "retry_asked",  # the handler asked to be called again later
    "undecodable",  # the input does not fit the capability's type
    "bad_output",  # the handler's answer does not fit, or is too large
    "outcome_unknown",  # nobody knows whether what the handler did outside has happened
    "unresolved",  # a reference of the plan points to nothing in this run
    "timed_out",  # the attempt's deadline passed
    "silent",  # the handler said nothing of itself for too long
    "crashed",  # the process that ran the handler alone has died
    "lost",  # the process that held the attempt is gone, or no longer answers
    "handed_back",  # the process shut down and gave the attempt back
    "unclaimed",  # nobody took the work in time
    "expired",  # an approval's or the run's own deadline passed
    "items_failed",  # some items of an `each` phase failed for good
    "phases_failed",
    "rollback_failed",
    "child_failed",  # some phases of a run failed for good
]


class Problem(msgspec.Struct, frozen=True, omit_defaults=True, rename={"error_class": "class"}):
    """What went wrong, for a person (`title`, `detail`) and for a program (`code`, `error_class`).

    `causes` is the chain of exceptions, outermost first; `cause` the problem of other work that was waited for, so that
    a chain goes on across agents. `retry_after_s` is a delay the source of the error asked for, `status` that of the
    HTTP response, if one was the reason. `agent` and `attempt` had it, and `instance` says where in the log it stands
    (a relative URI). `type` (a URN of the code) and `retryable` follow from the rest, for who knows RFC 9457.
    """

    code: Code
    title: str
    error_class: ErrorClass = "unknown"
    detail: str = ""
    causes: tuple[str, ...] = ()
    trace: str = ""
    retry_after_s: float | None = None
    status: int | None = None
    agent: str = ""
    attempt: int | None = None
    instance: str = ""
    cause: Problem | None = None
    type: str = ""
    retryable: bool = False

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "type", _URN + self.code)
        msgspec.structs.force_setattr(self, "retryable", self.error_class in RETRYABLE)

    def at(self, agent: str, run: str, phase: str, item: int | None, attempt: int) -> Problem:
        """The problem as one that an attempt of an agent had."""
        part = phase if item is None else f"{phase}:{item}"
        instance = f"runs/{run}/phases/{part}/attempts/{attempt}"
        return msgspec.structs.replace(self, agent=agent, attempt=attempt, instance=instance)

    def as_cause(self) -> Problem:
        """The problem as the cause of another one: without traces, and of a long chain only the nearest."""
        chain = [self]
        while (cause := chain[-1].cause) is not None and len(chain) < _DEEPEST:
            chain.append(cause)
        found: Problem | None = None
        for link in reversed(chain):
            found = msgspec.structs.replace(link, trace="", cause=found)
        assert found is not None, "a chain has a link"
        return found

    def __str__(self) -> str:
        return f"{self.title}: {self.detail}" if self.detail else self.title


def told(problem: Problem) -> dict[str, Any]:
    """The problem as plain values under its names on the wire, without traces: for logs, `--json` and HTTP."""
    said: dict[str, Any] = msgspec.to_builtins(problem.as_cause())
    return said
