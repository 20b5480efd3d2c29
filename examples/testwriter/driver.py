"""The child process that runs one generated file: `driver.py FILE ROOT LIMIT_S TEST_S MEMORY_BYTES`.

Prints one JSON line per test and nothing else, whatever the tested code prints. Each test runs in a fork of its own,
so one that hangs, eats the memory or ends the process takes only itself down. No pytest: a test is a function
`test_*` without parameters of its own.
"""

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn

from confinement import Refused, Reply, attempt, end_with_owner, guard, limit, take_over_stdout, warm_up
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import HypothesisException

MESSAGE_CHARACTERS = 700
EXAMPLES = 25
MOMENT_S = 0.5  # what a test gets beyond its limit to say where it hangs


def main(file: str, root: str, limit_s: str, test_s: str, memory_bytes: str) -> None:
    end_with_owner()
    results = take_over_stdout()
    sys.path[0] = root
    limit(memory_bytes=int(memory_bytes), seconds=float(limit_s))
    warm_up(Path(file).parent)
    guard(Path.cwd())
    settings.register_profile(
        "bounded",
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        report_multiple_bugs=False,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("bounded")
    try:
        module = load(Path(file))
    except BaseException as error:  # noqa: BLE001 - tested code may raise anything while it is imported
        report(results, "", "error", 0.0, f"the tests cannot be loaded: {describe(error)}")
        return
    for name, test in sorted(vars(module).items()):
        if name.startswith("test_") and callable(test):
            report(results, name, *judge(name, test, float(test_s)))


def load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None, "a path that ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def judge(name: str, test: Callable[[], object], test_s: float) -> tuple[str, float, str]:
    """Outcome, seconds and message of one test."""
    ended = attempt(lambda reply: carry_out(name, test, test_s, reply), limit_s=test_s + MOMENT_S)
    if ended.answer:
        outcome, message = json.loads(ended.answer)
        return outcome, ended.seconds, message
    if ended.exit_code is None:
        return "timeout", ended.seconds, f"still running after {test_s:g} s, in code that cannot be interrupted"
    return "error", ended.seconds, f"the tested code ended the process with exit code {ended.exit_code}"


def carry_out(name: str, test: Callable[[], object], test_s: float, reply: Reply) -> None:
    """Run the test here, in the fork, and put its outcome into words."""

    def answer(outcome: str, message: str = "") -> NoReturn:
        reply(json.dumps([outcome, message[:MESSAGE_CHARACTERS]]).encode())

    def give_up(_signal: int, frame: FrameType | None) -> NoReturn:
        answer("timeout", f"still running after {test_s:g} s: {whereabouts(name, frame)}")

    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, test_s)
    try:
        test()
    except (Refused, HypothesisException) as error:
        answer("error", describe(error))
    except BaseException as error:  # noqa: BLE001 - SystemExit out of a tested function is a finding too
        answer("error" if is_about_arguments(error) else "fail", describe(error))
    answer("pass")


def is_about_arguments(error: BaseException) -> bool:
    """Whether Hypothesis failed to make the arguments, before the tested function was called."""
    return any(note.startswith("while generating ") for note in getattr(error, "__notes__", ()))


def whereabouts(name: str, frame: FrameType | None) -> str:
    """The line that runs and the arguments the test was called with, from the stack below a signal."""
    if frame is None:
        return "nowhere"
    line = f"line {frame.f_lineno} of {Path(frame.f_code.co_filename).name}"
    while frame is not None:
        if frame.f_code.co_name == name and frame.f_locals:
            given = ", ".join(f"{key}={value!r:.200}" for key, value in frame.f_locals.items())
            return f"{line}\nFalsifying example: {name}({given})"
        frame = frame.f_back
    return line


def describe(error: BaseException) -> str:
    """The exception and the falsifying example Hypothesis noted on it, in characters that any encoding takes."""
    text = "\n".join([f"{type(error).__name__}: {error}"[: MESSAGE_CHARACTERS // 2], *getattr(error, "__notes__", [])])
    return text.encode("utf-8", "backslashreplace").decode()


def report(results: int, name: str, outcome: str, seconds: float, message: str) -> None:
    line = {"name": name, "outcome": outcome, "milliseconds": round(seconds * 1000), "message": message}
    os.write(results, json.dumps(line).encode() + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
