"""Runs one generated test file in a child process and reads its outcomes, however it ends."""

import msgspec
from children import Finished, run
from contracts import Outcome, Ran, Run


async def try_tests(query: Run) -> Ran:
    """What each test came to. A test that fails is a finding; a file that cannot be run is a `problem`."""
    written = query.written
    if not written.path:
        return Ran(written.module, [], problem=written.skipped)
    finished = await run(
        *("driver.py", written.path, written.root),
        *(f"{query.limit_s:g}", f"{query.test_s:g}", str(query.memory_bytes)),
        limit_s=query.limit_s,
    )
    return read(written.module, finished, query.limit_s)


def read(module: str, finished: Finished, limit_s: float) -> Ran:
    """The outcomes among the lines; one without a test's name says why the whole file could not be run."""
    outcomes = [outcome for line in finished.lines if (outcome := decode(line)) is not None]
    problem = next((outcome.message for outcome in outcomes if not outcome.name), "")
    if finished.exit_code is None:
        problem = f"stopped after {limit_s:g} s; tests that did not get their turn are missing"
    elif finished.exit_code:
        problem = f"the tested code ended the process with exit code {finished.exit_code}"
    return Ran(module, [outcome for outcome in outcomes if outcome.name], problem)


def decode(line: bytes) -> Outcome | None:
    """None for a line that is no outcome: tested code may find the descriptor and write to it."""
    try:
        return msgspec.json.decode(line, type=Outcome)
    except msgspec.DecodeError:
        return None
