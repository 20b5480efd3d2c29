"""A problem: the one shape of an error, in events, dead letters, logs and `--json` output (after RFC 9457)."""

from __future__ import annotations

from typing import Literal

import msgspec

ErrorClass = Literal["dependency", "configuration", "transient", "permanent", "unknown"]
"""Who can do something about it, which decides whether and when to try again (`bus.retry`)."""

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

    `causes` is the chain of exceptions, outermost first; `retry_after_s` is a delay the source of the error asked for;
    `status` that of the HTTP response, if one was the reason.
    """

    code: Code
    title: str
    error_class: ErrorClass = "unknown"
    detail: str = ""
    causes: tuple[str, ...] = ()
    trace: str = ""
    retry_after_s: float | None = None
    status: int | None = None

    def __str__(self) -> str:
        return f"{self.title}: {self.detail}" if self.detail else self.title
