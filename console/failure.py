"""What goes wrong, as people and programs get it: an exit code, one line what, one line what to type next."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from console.text import escaped

OK, FAILED, USAGE, NOT_FOUND, UNREACHABLE, TIMED_OUT, REFUSED = range(7)
INTERRUPTED = 130

_NAMES = {
    FAILED: "failed",
    USAGE: "usage",
    NOT_FOUND: "not_found",
    UNREACHABLE: "unreachable",
    TIMED_OUT: "timed_out",
    REFUSED: "refused",
    INTERRUPTED: "interrupted",
}
# As an attempt's problem has it (`bus.problem`), which is not imported for a word.
_CLASSES = {UNREACHABLE: "dependency", TIMED_OUT: "transient", FAILED: "unknown", INTERRUPTED: "unknown"}


class Failure(Exception):
    """The command ends with `code`. `next_step` is what to type, or to do, now; `cause` the problem behind it, told."""

    def __init__(self, code: int, what: str, next_step: str = "", cause: dict[str, Any] | None = None) -> None:
        super().__init__(what)
        self.code = code
        self.next_step = next_step
        self.cause = cause


def failure_of(error: BaseException) -> Failure | None:
    """The failure behind an exception, inside groups too. None: it is a bug, and its traceback tells more."""
    leaves = list(_leaves(error))
    failures = [_failure_of(leaf) for leaf in leaves]
    return None if None in failures else failures[0]


def report(failure: Failure, *, as_json: bool) -> None:
    """Say it on stderr, and with `as_json` to the program that reads stdout."""
    what = escaped(str(failure))
    click.echo(f"error: {what}" if failure.code != INTERRUPTED else what, err=True)
    if failure.next_step:
        click.echo(f"  next: {escaped(failure.next_step)}", err=True)
    if as_json:
        import json

        name, error_class = _NAMES[failure.code], _CLASSES.get(failure.code, "permanent")
        said = {
            "type": f"urn:phasebus:problem:{name}",
            "code": name,
            "title": str(failure),
            "class": error_class,
            "retryable": error_class != "permanent",
            "next_step": failure.next_step,
        }
        sys.stdout.write(json.dumps(said | ({"cause": failure.cause} if failure.cause else {})) + "\n")


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _failure_of(error: BaseException) -> Failure | None:
    if isinstance(error, Failure):
        return error
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx is not None else "phasebus"
        return Failure(USAGE, error.format_message(), f"{command} --help")
    if isinstance(error, click.ClickException):
        return Failure(FAILED, error.format_message())
    # Without the bus imported, none of its errors can have been raised.
    found = _of_bus(error) if "bus.errors" in sys.modules else None
    if found is None and isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename is not None else ""
        return Failure(FAILED, f"{error.strerror}{place}")
    return found


def _of_bus(error: BaseException) -> Failure | None:
    from bus import errors

    if isinstance(error, errors.Unavailable) and (refusal := _refused_login(error)):
        return refusal
    if isinstance(error, errors.WorkFailed):
        from bus.problem import told

        return Failure(FAILED, str(error), f"phasebus run show {error.run}", told(error.problem))
    rules: list[tuple[type[errors.BusError] | tuple[type[errors.BusError], ...], int, str]] = [
        (errors.NoLiveAgent, REFUSED, "start one: phasebus agent run FILE.py:agent"),
        (errors.Forbidden, REFUSED, "the same with a login that may: --url, NATS_URL or --context"),
        (errors.Archived, NOT_FOUND, "PHASEBUS_ARCHIVE=DIR, and the same command again"),
        (errors.Refused, REFUSED, "phasebus run ls"),
        (errors.NotFound, NOT_FOUND, "phasebus run ls --tasks"),
        (errors.TimedOut, TIMED_OUT, "phasebus attention"),
        (
            (errors.Unavailable, errors.NoResponders),
            UNREACHABLE,
            "is it running? start a bus with `phasebus up`, or set NATS_URL",
        ),
        (
            (
                errors.PlanError,
                errors.ScheduleError,
                errors.DecisionError,
                errors.SettingsError,
                errors.InvalidName,
                errors.TooLarge,
            ),
            USAGE,
            "",
        ),
        (errors.BusError, FAILED, ""),
    ]
    for kinds, code, next_step in rules:
        if isinstance(error, kinds):
            return Failure(code, str(error) or type(error).__name__, next_step)
    return None


def _refused_login(error: BaseException) -> Failure | None:
    """The server is there, and does not want this user."""
    from bus.broker.line import LoginRefused

    if not isinstance(error.__cause__, LoginRefused):
        return None
    reason = str(error.__cause__.__cause__).removeprefix("nats: ")
    login = "correct the user and the password in --url, NATS_URL, PHASEBUS_SYSTEM_URL or the context"
    return Failure(UNREACHABLE, f"the server refused the login: {reason}", login)
