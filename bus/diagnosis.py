"""An exception as a Problem: what happened, the chain of its causes, and who can do something about it.

The class comes from, in this order: the author's own `classify`, the status of an HTTP response the exception carries,
and its type. An exception that says nothing itself speaks for its cause.
"""

from __future__ import annotations

import errno
import ssl
import subprocess
import traceback
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from socket import EAI_AGAIN, gaierror
from typing import Any, get_args

import structlog

from bus.errors import (
    BudgetSpent,
    BusError,
    CircuitOpen,
    LimitReached,
    MalformedMessage,
    Misconfigured,
    NoLiveAgent,
    OutcomeUnknown,
    PlanError,
    Refused,
    SettingsError,
    TooLarge,
    Unavailable,
)
from bus.problem import ErrorClass, Problem
from bus.rules.retry import RetryLater

logger = structlog.get_logger(__name__)

Classify = Callable[[BaseException], ErrorClass | None]
"""An author's own judgement of an exception; None leaves it to the table."""

_TRACE_CHARACTERS = 4_000
_DETAIL_CHARACTERS = 1_000
_LONGEST_CHAIN = 10
_LONGEST_DELAY_S = 7 * 86_400.0

# The first that fits. A connection that broke may hold next time: transient. One that is refused means that nothing
# runs at the other end, and a name that is not found that the network or its configuration has changed: a dependency,
# which takes minutes, not seconds.
_TYPES: tuple[tuple[tuple[type[BaseException], ...], ErrorClass], ...] = (
    ((ConnectionRefusedError, gaierror, NoLiveAgent, CircuitOpen, BudgetSpent), "dependency"),
    ((ssl.SSLCertVerificationError, ImportError, PermissionError), "configuration"),
    ((SettingsError, Misconfigured), "configuration"),
    ((PlanError, MalformedMessage, OutcomeUnknown, Refused, TooLarge), "permanent"),
    (
        (TimeoutError, ConnectionError, InterruptedError, subprocess.TimeoutExpired, Unavailable, LimitReached),
        "transient",
    ),
)
_ERRNOS: dict[int, ErrorClass] = {
    **dict.fromkeys((errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EBUSY), "transient"),
    **dict.fromkeys((errno.ECONNRESET, errno.ECONNABORTED, errno.ETIMEDOUT), "transient"),
    **dict.fromkeys((errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH), "dependency"),
    **dict.fromkeys((errno.ENETDOWN, errno.EHOSTDOWN, errno.ENOSPC, errno.EDQUOT), "dependency"),
    errno.EROFS: "configuration",
}
_STATUSES: dict[int, ErrorClass] = {
    **dict.fromkeys((408, 421, 423, 425, 429), "transient"),
    **dict.fromkeys((401, 402, 403, 407, 511), "configuration"),
    **dict.fromkeys((501, 505), "permanent"),
    409: "unknown",
}


class Reject(Exception):
    """Raised by a handler: this can't be done, now or ever. The work is given up at once."""


def problem_of(error: BaseException, now: datetime, classify: Classify | None = None) -> Problem:
    """An exception of a handler as a Problem, with its chain of causes."""
    match error:
        case Reject():
            said = text_of(error)[:_DETAIL_CHARACTERS] or "rejected"
            return Problem("rejected", said, "permanent", causes=_causes(list(_chain(error))[1:]))
        case RetryLater():
            asked = text_of(error)[:_DETAIL_CHARACTERS]
            causes = _causes(list(_chain(error))[1:])
            return Problem("retry_asked", asked, "transient", causes=causes, retry_after_s=error.delay_s)
        case OutcomeUnknown():
            return Problem("outcome_unknown", text_of(error)[:_DETAIL_CHARACTERS], "permanent")
    chain = list(_chain(error))
    trace = "".join(traceback.format_exception(error))
    response = next((found for link, is_cause in chain if is_cause and (found := _response(link))), None)
    status, headers = response or (None, None)
    return Problem(
        "handler_error",
        type(error).__name__,
        _judged(error, classify) or _class_of(chain, status),
        detail=text_of(error)[:_DETAIL_CHARACTERS],
        causes=_causes(chain),
        trace=printable(trace[-_TRACE_CHARACTERS:]),
        retry_after_s=_asked_s(chain) if headers is None else _retry_after_s(headers, now),
        status=status,
        cause=next((inner.as_cause() for link, _ in chain if (inner := _inner(link)) is not None), None),
    )


def _causes(chain: Iterable[tuple[BaseException, bool]]) -> tuple[str, ...]:
    return tuple(f"{type(link).__name__}: {text_of(link)[:_DETAIL_CHARACTERS]}" for link, _ in chain)


def text_of(error: BaseException) -> str:
    """What an exception says, whatever its `__str__` does."""
    try:
        return printable(str(error))
    except Exception as broken:  # noqa: BLE001 - an exception whose own text raises must not stop the report
        return f"(no text: {type(broken).__name__})"


def printable(text: str) -> str:
    """Without lone surrogates, which JSON can't carry."""
    return text.encode("utf-8", "replace").decode()


def _chain(error: BaseException) -> Iterator[tuple[BaseException, bool]]:
    """An exception and what led to it, outermost first; and whether it was named as the cause, or only came before."""
    link: BaseException | None = error
    is_cause = True
    for _ in range(_LONGEST_CHAIN):
        if link is None:
            return
        yield link, is_cause
        is_cause = is_cause and link.__cause__ is not None
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _judged(error: BaseException, classify: Classify | None) -> ErrorClass | None:
    """The author's own judgement, if there is one that makes sense."""
    if classify is None:
        return None
    try:
        judged = classify(error)
    except Exception:
        logger.exception("classify raised", error=type(error).__name__)
        return None
    if judged is not None and judged not in get_args(ErrorClass):
        logger.error("classify gave no error class", gave=repr(judged), error=type(error).__name__)
        return None
    return judged


def _class_of(chain: list[tuple[BaseException, bool]], status: int | None) -> ErrorClass:
    if status is not None:
        return _STATUSES.get(status, "transient" if status >= 500 else "permanent")
    for link, is_cause in chain:
        kind = _known(link)
        # What only happened before may speak for another try, but not against it.
        if kind is not None and (is_cause or kind in {"transient", "dependency"}):
            return kind
    return "unknown"


def _inner(error: BaseException) -> Problem | None:
    """The problem of other work, which has been judged where it failed: of `bus.WorkFailed`, by its shape."""
    try:
        inner = getattr(error, "problem", None)
    except Exception:  # noqa: BLE001 - an attribute of somebody else's class may be a property that raises
        return None
    return inner if isinstance(inner, Problem) else None


def _known(error: BaseException) -> ErrorClass | None:
    if (inner := _inner(error)) is not None:
        return inner.error_class
    if isinstance(error, gaierror) and error.errno == EAI_AGAIN:
        return "transient"
    kind = next((kind for types, kind in _TYPES if isinstance(error, types)), None)
    if kind in {None, "transient"} and isinstance(error, OSError) and error.errno in _ERRNOS:
        return _ERRNOS[error.errno]
    return kind


def _response(error: BaseException) -> tuple[int, Any] | None:
    """Status and headers of the HTTP response an exception carries, in the shapes of the usual libraries."""
    try:
        response = getattr(error, "response", None)
        places = (
            (response, "status_code"),  # httpx, requests, and what is built on them
            (response, "status"),
            (error, "status"),  # aiohttp
            (error, "code"),  # urllib
        )
        for place, name in places:
            status, headers = getattr(place, name, None), getattr(place, "headers", None)
            # `status` and `code` are names of many things: with headers beside it, it is a response.
            if isinstance(status, int) and 400 <= status <= 599 and hasattr(headers, "get"):
                return int(status), headers
    except Exception:  # noqa: BLE001 - an attribute of somebody else's class may be a property that raises
        return None
    return None


def _asked_s(chain: list[tuple[BaseException, bool]]) -> float | None:
    """The delay that an error of ours asks for: of a breaker, a limit, or of all providers."""
    asked = (
        getattr(link, "retry_after_s", None) for link, is_cause in chain if is_cause and isinstance(link, BusError)
    )
    return next((each for each in asked if each is not None), None)


def _retry_after_s(headers: Any, now: datetime) -> float | None:
    """The delay a server asked for: seconds, or a date (RFC 9110)."""
    if headers is None:
        return None
    try:
        asked = str(headers.get("Retry-After") or headers.get("retry-after") or "").strip()
        if asked.isdecimal():
            return min(float(asked), _LONGEST_DELAY_S)
        at = parsedate_to_datetime(asked)
        left_s = (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds()
        return min(max(left_s, 0.0), _LONGEST_DELAY_S)
    except Exception:  # noqa: BLE001 - somebody else's headers, which may hold anything
        return None
