"""Who can do something about an exception: the author's word, the HTTP status, the type, and what led to it."""

from __future__ import annotations

import errno
import json
import socket
import ssl
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from email.message import Message
from typing import Any, get_args
from urllib.error import HTTPError

import msgspec
import pytest

from bus import (
    BusError,
    NoLiveAgent,
    Refused,
    Reject,
    Retry,
    SettingsError,
    TimedOut,
    TooLarge,
    Unavailable,
    WorkFailed,
)
from bus.diagnosis import problem_of
from bus.problem import ErrorClass, Problem, told

NOW = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)


class Response:
    """As httpx, requests and what is built on them have it."""

    def __init__(self, status_code: int, headers: dict[str, str] | None = None) -> None:
        self.status_code = status_code
        self.headers = headers or {}


class StatusError(Exception):
    """httpx.HTTPStatusError, requests.HTTPError, openai.APIStatusError."""

    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"status {status}")
        self.response = Response(status, headers)


class ClientResponseError(Exception):
    """aiohttp's."""

    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.headers = headers or {}


def urllib_error(status: int, headers: dict[str, str] | None = None) -> HTTPError:
    message = Message()
    for name, value in (headers or {}).items():
        message[name] = value
    return HTTPError("http://bus", status, "no", message, None)


SHAPES = [StatusError, ClientResponseError, urllib_error]


def class_of(error: BaseException) -> ErrorClass:
    return problem_of(error, NOW).error_class


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "permanent"),
        (401, "configuration"),
        (403, "configuration"),
        (404, "permanent"),
        (407, "configuration"),
        (408, "transient"),
        (409, "unknown"),
        (410, "permanent"),
        (422, "permanent"),
        (425, "transient"),
        (429, "transient"),
        (500, "transient"),
        (501, "permanent"),
        (503, "transient"),
        (599, "transient"),
    ],
)
def test_the_status_of_a_response_says_who_can_do_something(
    shape: Callable[[int], Exception], status: int, kind: str
) -> None:
    problem = problem_of(shape(status), NOW)
    assert (problem.error_class, problem.status) == (kind, status)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("asked", "delay_s"),
    [
        ("120", 120.0),
        ("0", 0.0),
        (" 7 ", 7.0),
        ("Fri, 02 Jan 2026 12:01:30 GMT", 90.0),
        ("Fri, 02 Jan 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("1e999", None),
        ("9" * 400, 604_800.0),
        ("", None),
    ],
)
def test_a_delay_the_server_asks_for_is_kept(
    shape: Callable[[int, dict[str, str]], Exception], asked: str, delay_s: float | None
) -> None:
    assert problem_of(shape(429, {"Retry-After": asked}), NOW).retry_after_s == delay_s


def test_a_response_counts_wherever_it_is_in_the_chain_of_causes() -> None:
    error = RuntimeError("the model could not be asked")
    error.__cause__ = StatusError(429, {"retry-after": "3"})
    problem = problem_of(error, NOW)
    assert (problem.error_class, problem.status, problem.retry_after_s) == ("transient", 429, 3.0)
    assert problem.title == "RuntimeError"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "dependency"),
        (socket.gaierror(socket.EAI_NONAME, "no such host"), "dependency"),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), "transient"),
        (OSError(errno.EHOSTUNREACH, "no route"), "dependency"),
        (OSError(errno.ENOSPC, "disk full"), "dependency"),
        (OSError(errno.EMFILE, "too many files"), "transient"),
        (OSError(errno.EROFS, "read only"), "configuration"),
        (OSError("of another library"), "unknown"),
        (ConnectionResetError("peer"), "transient"),
        (BrokenPipeError("peer"), "transient"),
        (TimeoutError(), "transient"),
        (subprocess.TimeoutExpired("make", 5), "transient"),
        (ssl.SSLCertVerificationError("expired"), "configuration"),
        (PermissionError("denied"), "configuration"),
        (ModuleNotFoundError("no module"), "configuration"),
        (FileNotFoundError("gone"), "unknown"),
        (ValueError("bad"), "unknown"),
        (NoLiveAgent("price"), "dependency"),
        (Unavailable("no server"), "transient"),
        (TimedOut("no answer"), "transient"),
        (SettingsError("bad"), "configuration"),
        (Refused("no"), "permanent"),
        (TooLarge("it", 2, 1), "permanent"),
        (BusError("some other"), "unknown"),
    ],
)
def test_an_exception_is_classed_by_what_it_is(error: Exception, kind: str) -> None:
    assert class_of(error) == kind


@pytest.mark.parametrize("kind", get_args(ErrorClass))
def test_work_that_failed_elsewhere_keeps_its_class(kind: ErrorClass) -> None:
    assert class_of(WorkFailed("run", Problem("handler_error", "it broke", kind))) == kind


def raised(do: Callable[[], Any]) -> BaseException:
    try:
        do()
    except Exception as error:  # noqa: BLE001 - it is what is looked at
        return error
    raise AssertionError("it raises")


def fail(error: Exception) -> None:
    raise error


def with_cause(inner: Exception) -> BaseException:
    def do() -> None:
        try:
            fail(inner)
        except Exception as error:
            raise RuntimeError("outer") from error

    return raised(do)


def with_context(inner: Exception) -> BaseException:
    def do() -> None:
        try:
            fail(inner)
        except Exception:  # noqa: BLE001
            raise RuntimeError("outer")  # noqa: B904 - that it is implicit is the point

    return raised(do)


@pytest.mark.parametrize(
    ("inner", "caused", "before"),
    [
        (ConnectionResetError("peer"), "transient", "transient"),
        (ConnectionRefusedError(), "dependency", "dependency"),
        (PermissionError("denied"), "configuration", "unknown"),
        (Refused("no"), "permanent", "unknown"),
        (ValueError("bad"), "unknown", "unknown"),
    ],
)
def test_a_cause_speaks_for_an_exception_and_what_came_before_only_for_another_try(
    inner: Exception, caused: str, before: str
) -> None:
    assert (class_of(with_cause(inner)), class_of(with_context(inner))) == (caused, before)


def test_a_response_that_only_came_before_is_not_the_reason() -> None:
    assert problem_of(with_context(StatusError(404)), NOW).status is None


class Rude(Exception):
    """Its attributes raise."""

    @property
    def response(self) -> object:
        raise RuntimeError("no response was set")


class Odd(Exception):
    """Names that mean something else here."""

    status = 404
    code = 500


@pytest.mark.parametrize("error", [Rude(), Odd(), json.JSONDecodeError("bad", "", 0)])
def test_what_only_looks_like_a_response_is_none(error: Exception) -> None:
    problem = problem_of(error, NOW)
    assert (problem.status, problem.error_class) == (None, "unknown")


@pytest.mark.parametrize("said", [*get_args(ErrorClass), None])
def test_the_author_s_judgement_goes_first(said: ErrorClass | None) -> None:
    problem = problem_of(StatusError(503), NOW, lambda _: said)
    assert problem.error_class == (said or "transient")
    assert problem.status == 503


def broken(_: BaseException) -> ErrorClass:
    raise RuntimeError("classify is broken")


@pytest.mark.parametrize("classify", [broken, lambda _: "urgent"])
def test_a_judgement_that_makes_no_sense_is_left_out(classify: Callable[[BaseException], Any]) -> None:
    assert problem_of(TimeoutError(), NOW, classify).error_class == "transient"


@pytest.mark.parametrize("error", [Reject("no"), Retry(2.0, "later")])
def test_what_a_handler_says_itself_is_not_judged(error: Exception) -> None:
    assert problem_of(error, NOW, lambda _: "dependency").code in {"rejected", "retry_asked"}


def test_a_problem_with_a_status_can_be_stored() -> None:
    problem = problem_of(StatusError(429, {"Retry-After": "3"}), NOW)
    assert msgspec.json.decode(msgspec.json.encode(problem), type=Problem) == problem


def test_a_problem_says_what_rfc_9457_names_and_what_follows_from_its_class() -> None:
    said = told(Problem("timed_out", "no result within 5 s", "transient", detail="d", status=503))
    assert said == {
        "type": "urn:phasebus:problem:timed_out",
        "title": "no result within 5 s",
        "status": 503,
        "detail": "d",
        "code": "timed_out",
        "class": "transient",
        "retryable": True,
    }
    assert "retryable" not in told(Problem("rejected", "no", "permanent"))


def test_a_problem_of_work_that_was_waited_for_is_the_cause_of_the_handler_s_own() -> None:
    theirs = Problem("rejected", "no such sku", "permanent", trace="File ...").at("pricing", "task-1", "do", None, 2)
    mine = problem_of(WorkFailed("task-1", theirs), NOW).at("orders", "run-1", "price", 3, 1)
    assert (mine.agent, mine.instance) == ("orders", "runs/run-1/phases/price:3/attempts/1")
    assert mine.cause is not None
    assert (mine.cause.agent, mine.cause.attempt, mine.cause.title) == ("pricing", 2, "no such sku")
    assert mine.cause.instance == "runs/task-1/phases/do/attempts/2" and not mine.cause.trace


def test_a_chain_across_agents_is_kept_to_its_nearest_ten() -> None:
    problem = Problem("rejected", "0")
    for number in range(1, 30):
        problem = Problem("handler_error", str(number), cause=problem.as_cause())
    titles, link = [], problem.as_cause()
    while link is not None:
        titles.append(link.title)
        link = link.cause
    assert titles == [str(29 - number) for number in range(10)]


def test_what_was_behind_a_rejection_is_kept() -> None:
    try:
        try:
            int("seven")
        except ValueError as error:
            raise Reject("no number") from error
    except Reject as rejection:
        problem = problem_of(rejection, NOW)
    assert (problem.code, problem.causes) == (
        "rejected",
        ("ValueError: invalid literal for int() with base 10: 'seven'",),
    )
