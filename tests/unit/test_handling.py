from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

import msgspec
import pytest

from bus.clock import utc_now
from bus.diagnosis import Reject, problem_of
from bus.handlers.agent import Agent, Capability
from bus.handlers.context import Context
from bus.handlers.handling import Halted, perform
from bus.problem import Problem
from bus.rules.retry import Retry


class Price(msgspec.Struct, frozen=True):
    sku: str
    quantity: int


class Priced(msgspec.Struct, frozen=True):
    total_cents: int


def capability(handler: Callable[..., Any]) -> Capability:
    agent = Agent("pricing")
    agent.capability("price")(handler)
    return agent.capabilities["price"]


async def run(handler: Callable[..., Any], value: object = None, *, timeout_s: float = 5.0) -> bytes | Problem | Halted:
    return await perform(capability(handler), value, Context(), timeout_s=timeout_s)


async def failure(handler: Callable[..., Any], value: object = None, *, timeout_s: float = 5.0) -> Problem:
    """The problem a handler leads to; it must be one that can be stored."""
    result = await run(handler, value, timeout_s=timeout_s)
    assert isinstance(result, Problem)
    assert msgspec.json.decode(msgspec.json.encode(result), type=Problem) == result
    return result


async def test_an_order_goes_in_as_its_type_and_the_answer_comes_out_as_json() -> None:
    async def price(query: Price) -> Priced:
        assert isinstance(query, Price)
        return Priced(total_cents=7 * query.quantity)

    assert await run(price, {"sku": "A", "quantity": 3}) == b'{"total_cents":21}'


async def test_a_handler_with_two_parameters_gets_the_context() -> None:
    async def price(_query: object, context: Context) -> str:
        return context.phase

    result = await perform(capability(price), None, Context(phase="quote"), timeout_s=5.0)
    assert result == b'"quote"'


async def test_a_handler_without_annotations_takes_and_gives_anything() -> None:
    assert await run(lambda value: value, {"a": [1, None]}) == b'{"a":[1,null]}'


async def test_a_sync_handler_runs_in_a_thread_with_the_caller_s_context_variables() -> None:
    name = contextvars.ContextVar("name", default="nobody")
    name.set("somebody")

    def who(_: object) -> object:
        return [threading.current_thread() is threading.main_thread(), name.get()]

    assert await run(who) == b'[false,"somebody"]'


@pytest.mark.parametrize(
    "value", [None, [], {}, {"sku": "A"}, {"sku": "A", "quantity": "3"}, {"sku": 1, "quantity": 1}]
)
async def test_an_input_that_does_not_fit_is_never_tried_again(value: object) -> None:
    def price(_: Price) -> None:
        raise AssertionError("must not be called")

    problem = await failure(price, value)
    assert (problem.code, problem.error_class) == ("undecodable", "permanent")
    assert problem.title == "the input does not fit 'price'"
    assert problem.detail


class Picky(msgspec.Struct):
    """A type whose own validation is broken: it raises what no decoder expects."""

    sku: str

    def __post_init__(self) -> None:
        {"A-7": 1}[self.sku]


async def test_an_input_whose_own_check_raises_is_undecodable() -> None:
    def price(_: Picky) -> None:
        raise AssertionError("must not be called")

    assert (await failure(price, {"sku": "B"})).code == "undecodable"


async def test_an_answer_whose_own_check_raises_is_bad_output() -> None:
    def price(_: object) -> Picky:
        return {"sku": "B"}  # type: ignore[return-value]

    assert (await failure(price)).code == "bad_output"


async def test_an_input_nested_too_deep_is_undecodable() -> None:
    nested: object = None
    for _ in range(10_000):
        nested = {"inner": nested}

    def count(_: Nested) -> int:
        raise AssertionError("must not be called")

    assert (await failure(count, nested)).code == "undecodable"


class Nested(msgspec.Struct):
    inner: Nested | None = None


async def test_a_rejection_is_permanent_and_says_why() -> None:
    async def price(_: object) -> None:
        raise Reject("unknown sku 'A'")

    problem = await failure(price)
    assert (problem.code, problem.error_class, str(problem)) == ("rejected", "permanent", "unknown sku 'A'")


async def test_a_rejection_without_words_has_a_title() -> None:
    async def price(_: object) -> None:
        raise Reject

    assert (await failure(price)).title == "rejected"


async def test_a_retry_is_transient_and_keeps_its_delay() -> None:
    async def price(_: object) -> None:
        raise Retry(2.5, "the shop is closed")

    problem = await failure(price)
    assert (problem.code, problem.error_class, problem.retry_after_s) == ("retry_asked", "transient", 2.5)
    assert problem.title == "the shop is closed"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (KeyError("x"), "unknown"),
        (ValueError("bad"), "unknown"),
        (TimeoutError(), "transient"),
        (ConnectionResetError("peer"), "transient"),
        (ModuleNotFoundError("no module"), "configuration"),
        (PermissionError("denied"), "configuration"),
    ],
)
async def test_an_exception_is_classed_by_its_type(error: Exception, kind: str) -> None:
    def price(_: object) -> None:
        raise error

    problem = await failure(price)
    assert (problem.code, problem.error_class, problem.title) == ("handler_error", kind, type(error).__name__)
    assert "raise error" in problem.trace


def broken_link() -> None:
    raise KeyError("inner")


async def test_the_chain_of_causes_is_kept_outermost_first() -> None:
    def middle() -> None:
        try:
            broken_link()
        except KeyError as error:
            raise ValueError("middle") from error

    def price(_: object) -> None:
        try:
            middle()
        except ValueError:
            raise RuntimeError("outer")  # noqa: B904 - an implicit context is a cause too

    problem = await failure(price)
    assert problem.causes == ("RuntimeError: outer", "ValueError: middle", "KeyError: 'inner'")


async def test_a_cause_that_was_suppressed_is_left_out() -> None:
    def price(_: object) -> None:
        try:
            broken_link()
        except KeyError:
            raise ValueError("outer") from None

    assert (await failure(price)).causes == ("ValueError: outer",)


def test_a_circle_of_causes_ends() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert len(problem_of(first, utc_now()).causes) == 10


async def test_a_long_story_is_cut() -> None:
    def price(_: object) -> None:
        raise ValueError("x" * 1_000_000)

    assert len(msgspec.json.encode(await failure(price))) < 10_000


async def test_a_long_rejection_is_cut() -> None:
    def price(_: object) -> None:
        raise Reject("x" * 10_000_000)

    assert len(msgspec.json.encode(await failure(price))) < 10_000


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class MuteReject(Reject, Mute):
    pass


async def test_an_exception_whose_text_raises_is_still_reported() -> None:
    def price(_: object) -> None:
        raise Mute

    problem = await failure(price)
    assert (problem.title, problem.detail) == ("Mute", "(no text: RuntimeError)")


async def test_a_rejection_whose_text_raises_is_still_a_rejection() -> None:
    def price(_: object) -> None:
        raise MuteReject

    assert (await failure(price)).code == "rejected"


@pytest.mark.parametrize("error", [ValueError("\ud800"), Reject("\ud800"), Retry(1.0, "\ud800"), OSError("\udcff")])
async def test_text_that_json_can_not_carry_does_not_hide_the_problem(error: Exception) -> None:
    def price(_: object) -> None:
        raise error

    assert "\ud800" not in str(await failure(price))


async def test_an_answer_with_a_lone_surrogate_is_bad_output() -> None:
    assert (await failure(lambda _: "\ud800")).code == "bad_output"


def number(_: object) -> int:
    return "seven"  # type: ignore[return-value]


def nothing(_: object) -> int:
    return None  # type: ignore[return-value]


def no_number(_: object) -> float:
    return float("nan")


def thing(_: object) -> object:
    return object()


def circle(_: object) -> object:
    ring: list[object] = []
    ring.append(ring)
    return ring


@pytest.mark.parametrize("handler", [number, nothing, no_number, thing, circle])
async def test_an_answer_of_the_wrong_type_is_never_tried_again(handler: Callable[..., Any]) -> None:
    problem = await failure(handler)
    assert (problem.code, problem.error_class) == ("bad_output", "permanent")
    assert "'price'" in problem.title


async def test_an_async_handler_is_cancelled_at_its_deadline() -> None:
    cancelled = asyncio.Event()

    async def price(_: object) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    problem = await failure(price, timeout_s=0.01)
    assert (problem.code, problem.error_class, problem.title) == ("timed_out", "transient", "no result within 0.01 s")
    assert cancelled.is_set()


async def test_a_sync_handler_is_left_behind_at_its_deadline() -> None:
    release = threading.Event()

    def price(_: object) -> None:
        release.wait()

    try:
        assert (await failure(price, timeout_s=0.01)).code == "timed_out"
    finally:
        release.set()


@pytest.mark.parametrize("ending", ["returns", "raises"])
async def test_a_handler_that_swallows_its_cancellation_can_not_hold_the_attempt(ending: str) -> None:
    release, left = asyncio.Event(), asyncio.Event()
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, complaint: complaints.append(complaint))

    async def price(_: object) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await release.wait()
        left.set()
        if ending == "raises":
            raise ValueError("too late")
        return "too late"

    assert (await failure(price, timeout_s=0.01)).code == "timed_out"
    release.set()
    await left.wait()
    await asyncio.sleep(0)
    assert complaints == []


async def test_a_handler_that_says_nothing_of_itself_is_ended() -> None:
    cancelled = asyncio.Event()

    async def price(_: object) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    result = await perform(capability(price), None, Context(), timeout_s=60.0, silence_s=0.01)
    assert isinstance(result, Problem)
    assert (result.code, result.error_class) == ("silent", "transient")
    assert str(result) == "the handler said nothing of itself for 0.01 s"
    assert cancelled.is_set()


@pytest.mark.parametrize("said", ["alive", "check", "progress"])
async def test_a_handler_that_says_that_it_lives_may_take_its_time(said: str) -> None:
    async def price(_: object, context: Context) -> str:
        signs: dict[str, Callable[[], object]] = {
            "alive": context.alive,
            "check": context.check,
            "progress": lambda: context.progress(0.5),
        }
        for _ in range(40):
            await asyncio.sleep(0.02)
            signs[said]()
        return "done"

    assert await perform(capability(price), None, Context(), timeout_s=60.0, silence_s=0.5) == b'"done"'


def looking(release: threading.Event, seen: list[str]) -> Callable[[object, Context], None]:
    """A handler in a thread that looks whether anybody waits for it, and says so when nobody does."""

    def price(_: object, context: Context) -> None:
        while not context.cancelled:
            assert not release.wait(0.005), "nobody told it"
        seen.append(context.pulse.ended)
        context.check()

    return price


@pytest.mark.parametrize(
    ("timeout_s", "silence_s", "reason"),
    [(0.05, None, "no result within 0.05 s"), (60.0, 0.05, "said nothing")],
)
async def test_a_thread_sees_that_nobody_waits_for_it_any_more(
    timeout_s: float, silence_s: float | None, reason: str
) -> None:
    release, seen = threading.Event(), list[str]()
    handler = capability(looking(release, seen))
    try:
        result = await perform(handler, None, Context(), timeout_s=timeout_s, silence_s=silence_s)
        assert isinstance(result, Problem)
        while not seen:
            await asyncio.sleep(0.005)
        assert reason in seen[0]
    finally:
        release.set()


@pytest.mark.parametrize("kind", ["async", "swallows", "thread"])
async def test_a_handler_nobody_wants_any_more_gives_no_result(kind: str) -> None:
    release, started, cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()
    in_thread, seen = threading.Event(), list[str]()

    async def price(_: object) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            if kind == "async":
                raise
            await release.wait()

    handler = looking(in_thread, seen) if kind == "thread" else price
    context = Context()
    attempt = asyncio.create_task(perform(capability(handler), None, context, timeout_s=60.0))
    if kind != "thread":
        await started.wait()
    context.pulse.drop("the run was cancelled by ann")
    assert await attempt == Halted("the run was cancelled by ann")
    assert kind == "thread" or cancelled.is_set()
    release.set()
    in_thread.set()


async def test_a_handler_that_was_done_when_nobody_wanted_it_any_more_gives_no_result_either() -> None:
    async def price(_: object, context: Context) -> str:
        context.pulse.drop("too late")
        return "done"

    assert await perform(capability(price), None, Context(), timeout_s=60.0) == Halted("too late")


def test_checking_ends_a_handler_nobody_waits_for() -> None:
    context = Context()
    context.check()
    assert not context.cancelled
    context.pulse.end("no result within 5 s")
    assert context.cancelled
    with pytest.raises(asyncio.CancelledError, match="no result within 5 s"):
        context.check()


def test_progress_can_be_said_from_a_plain_function() -> None:
    """Without a coroutine that nobody awaits."""
    Context().progress(0.5, "half way")


async def test_the_author_s_classify_is_asked() -> None:
    agent = Agent("pricing", classify=lambda error: "dependency" if isinstance(error, KeyError) else None)

    def price(error: str) -> None:
        raise {"key": KeyError, "value": ValueError}[error]

    agent.capability("price")(price)
    agent.capability("price.own", classify=lambda _: "permanent")(price)
    for name, error, kind in [
        ("price", "key", "dependency"),
        ("price", "value", "unknown"),
        ("price.own", "key", "permanent"),
    ]:
        result = await perform(agent.capabilities[name], error, Context(), timeout_s=5.0)
        assert isinstance(result, Problem)
        assert result.error_class == kind


async def test_a_handler_that_raises_timeout_itself_is_not_timed_out() -> None:
    async def price(_: object) -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    assert (await failure(price)).code == "handler_error"


async def test_a_handler_that_cancels_itself_has_failed() -> None:
    async def price(_: object) -> None:
        raise asyncio.CancelledError

    assert (await failure(price)).code == "handler_error"


async def test_cancelling_the_attempt_cancels_the_handler() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def price(_: object) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    attempt = asyncio.create_task(run(price))
    await started.wait()
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    assert cancelled.is_set()


async def test_an_exhausted_iterator_in_a_thread_is_an_ordinary_failure() -> None:
    """`next()` without a default: asyncio can't pass StopIteration on, and would wait for ever."""

    def price(_: object) -> object:
        return next(iter(()))

    problem = await failure(price, timeout_s=0.5)
    assert problem.code == "handler_error"


class Surprise(BaseException):
    """What no `except Exception` keeps."""


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), Surprise()])
@pytest.mark.parametrize("is_async", [True, False])
def test_a_handler_that_exits_has_failed_and_its_process_goes_on(is_async: bool, raised: BaseException) -> None:
    def exits(_: object) -> None:
        raise raised

    async def exits_too(_: object) -> None:
        raise raised

    assert asyncio.run(failure(exits_too if is_async else exits)).code == "handler_error"


async def test_an_async_handler_behind_a_plain_decorator_is_awaited() -> None:
    def logged(handler: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(handler)
        def called(value: object) -> Any:
            return handler(value)

        return called

    @logged
    async def price(_: object) -> int:
        return 7

    assert await run(price) == b"7"
