"""Handlers in processes of their own: what they may do, and that nothing of them is left when they are over."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from bus import Agent, Context, Problem, SettingsError
from bus.handlers.agent import Capability
from bus.handlers.cells import Cells
from bus.handlers.context import SAID, Said
from bus.handlers.handling import Halted, perform
from tests.harness import BOUND_S, has_ended, until
from tests.integration import isolated, threaded


@asynccontextmanager
async def opened(agent: Agent) -> AsyncIterator[Cells]:
    cells = Cells(agent)
    await cells.open()
    try:
        yield cells
    finally:
        cells.close()


@pytest.fixture
async def cells() -> AsyncIterator[Cells]:
    async with opened(isolated.agent) as cells:
        yield cells


def capability(name: str) -> Capability:
    return isolated.agent.capabilities[name]


async def made(cells: Cells, name: str, value: object = None, context: Context | None = None) -> Any:
    """What comes of an attempt: the answer's value, or a problem."""
    async with asyncio.timeout(BOUND_S):
        result = await cells.answer(capability(name), value, context or Context())
    return result if isinstance(result, Problem) else msgspec.json.decode(result)


async def family(folder: Path) -> list[int]:
    """The handler's process, its keeper, and the process it has started; all live."""
    await until((folder / "pids").exists)
    pids = [int(pid) for pid in (folder / "pids").read_text().split()]
    assert not any(map(has_ended, pids))
    return pids


async def test_a_handler_answers_from_a_process_of_its_own(cells: Cells) -> None:
    first, second = [await made(cells, "facts") for _ in range(2)]
    assert len({first["pid"], second["pid"], os.getpid()}) == 3


async def test_what_it_emits_comes_in_order_and_it_knows_its_story(cells: Cells) -> None:
    emitted: list[object] = []

    def sink(chunk: object) -> Said:
        emitted.append(msgspec.json.decode(msgspec.json.encode(chunk)))
        return SAID

    assert await made(cells, "count", 5, Context(correlation="story-1", sink=sink)) == "story-1"
    assert emitted == [0, 1, 2, 3, 4]


async def test_what_it_prints_is_not_what_it_answers(capfd: pytest.CaptureFixture[str]) -> None:
    async with opened(isolated.agent) as cells:
        assert await made(cells, "echo", {"a": [1, None, "ü"]}) == {"a": [1, None, "ü"]}
    printed = capfd.readouterr()
    assert "on stdout" in printed.out
    assert "on stderr" in printed.err


async def test_it_knows_the_attempt_and_its_word_comes_through(capfd: pytest.CaptureFixture[str]) -> None:
    said: list[tuple[float, str]] = []

    def report(fraction: float, note: str) -> Any:
        said.append((fraction, note))
        return SAID

    at = datetime(2026, 1, 2, tzinfo=UTC)
    context = Context(run="r", phase="p", item=3, attempt=2, deadline_at=at, report=report)
    with structlog.contextvars.bound_contextvars(run="r", phase="p:3"):
        async with opened(isolated.agent) as cells:
            facts = await made(cells, "facts", None, context)
    assert (facts["effect_key"], facts["attempt"], facts["deadline"]) == ("r/p:3", 2, str(at))
    assert said == [(0.5, "half ? way")]
    (line,) = [each for each in capfd.readouterr().err.splitlines() if "in a process of its own" in each]
    logged = json.loads(line)
    assert (logged["run"], logged["phase"]) == ("r", "p:3")


async def test_many_at_once(cells: Cells) -> None:
    answers = await asyncio.gather(*(made(cells, "echo", number) for number in range(30)))
    assert answers == list(range(30))


async def test_what_is_large_goes_in_and_comes_out(cells: Cells) -> None:
    large = "x" * 20_000_000
    assert await made(cells, "echo", large) == large


@pytest.mark.parametrize(
    ("how", "code", "kind", "title"),
    [
        ("segfault", "crashed", "unknown", "the handler's process was ended by SIGSEGV"),
        ("abort", "crashed", "unknown", "the handler's process was ended by SIGABRT"),
        ("exit", "crashed", "unknown", "the handler's process ended with exit code 3 before it answered"),
        ("kill", "crashed", "transient", "the handler's process was ended by SIGKILL: "),
        ("keeper", "crashed", "unknown", "the handler's process is gone"),
        ("reject", "rejected", "permanent", "no"),
        ("retry", "retry_asked", "transient", "again in 2.5 s"),
        ("sys.exit", "handler_error", "unknown", "SystemExit"),
        ("the door", "handler_error", "dependency", "ConnectionRefusedError"),
    ],
)
async def test_however_it_ends_the_problem_says_so(cells: Cells, how: str, code: str, kind: str, title: str) -> None:
    problem = await made(cells, "end", how)
    assert (problem.code, problem.error_class) == (code, kind)
    assert problem.title.startswith(title)
    assert await made(cells, "echo", "the next one works") == "the next one works"


async def test_a_crash_leaves_its_traceback(cells: Cells) -> None:
    problem = await made(cells, "end", "segfault")
    assert "Segmentation fault" in problem.trace
    assert "in end" in problem.trace


@pytest.mark.parametrize(("value", "code"), [("seven", "undecodable"), (7, "bad_output")])
async def test_types_are_checked_as_anywhere(cells: Cells, value: object, code: str) -> None:
    assert (await made(cells, "typed", value)).code == code


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce it")
async def test_a_handler_that_wants_more_memory_than_it_may_has_failed(cells: Cells) -> None:
    assert await made(cells, "hoard", 1) == 2**20
    assert (await made(cells, "hoard", 500)).title == "MemoryError"


async def test_what_it_started_ends_with_its_answer(cells: Cells, tmp_path: Path) -> None:
    attempt = asyncio.create_task(made(cells, "family", str(tmp_path)))
    pids = await family(tmp_path)
    (tmp_path / "leave").touch()
    assert await attempt == "left"
    await until(lambda: all(map(has_ended, pids)))


@pytest.mark.parametrize("ending", ["deadline", "silence", "halt", "stop"])
async def test_it_is_killed_with_all_it_started(cells: Cells, tmp_path: Path, ending: str) -> None:
    context = Context()
    attempt = asyncio.create_task(
        perform(
            capability("family"),
            str(tmp_path),
            context,
            timeout_s=1.0 if ending == "deadline" else 60.0,
            silence_s=1.0 if ending == "silence" else None,
            answer=cells.answer,
        )
    )
    pids = await family(tmp_path)
    match ending:
        case "silence":
            # It says that it lives; now it can't.
            os.kill(pids[0], signal.SIGSTOP)
        case "halt":
            context.pulse.drop("the run was cancelled by ann")
        case "stop":
            attempt.cancel()
    await asyncio.wait({attempt}, timeout=BOUND_S)
    await until(lambda: all(map(has_ended, pids)))
    if ending == "stop":
        assert attempt.cancelled()
        return
    result = attempt.result()
    if ending == "halt":
        assert result == Halted("the run was cancelled by ann")
    else:
        assert isinstance(result, Problem)
        assert result.code == {"deadline": "timed_out", "silence": "silent"}[ending]


async def test_the_process_that_is_copied_may_die_too(cells: Cells) -> None:
    assert cells._first is not None
    cells._first._line.close()
    await until(lambda: cells._first is not None and cells._first.has_ended)
    assert await made(cells, "echo", 1) == 1


async def test_a_process_with_threads_is_not_copied() -> None:
    async with asyncio.timeout(BOUND_S), opened(threaded.agent) as cells:
        handler = threaded.agent.capabilities["pid"]
        answers = await asyncio.gather(*(cells.answer(handler, None, Context()) for _ in range(4)))
    assert len(set(map(str, answers))) == 4
    assert all(isinstance(each, bytes) for each in answers)


async def test_an_agent_another_process_can_not_import_is_refused_before_it_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.integration import unimportable

    monkeypatch.setenv("IMPORTED_BEFORE", "yes")
    with pytest.raises(SettingsError, match=r"unimportable:agent.*can't be imported twice"):
        await Cells(unimportable.agent).open()


async def test_an_agent_in_a_function_is_refused_before_it_serves() -> None:
    agent = Agent("hidden")
    agent.capability("echo", isolation="process")(isolated.echo)
    with pytest.raises(SettingsError, match=r"'echo' has isolation='process'.*top level"):
        await Cells(agent).open()


async def test_without_isolated_handlers_no_process_is_started() -> None:
    agent = Agent("plain")
    agent.capability("echo")(isolated.echo)
    cells = Cells(agent)
    await cells.open()
    assert cells._first is None
