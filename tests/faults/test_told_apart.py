"""What is said of each thing that a run can wait for: a small version of `python -m benchmarks.causes`."""

from __future__ import annotations

from benchmarks.causes.__main__ import asked, misses, right


async def test_what_a_run_waits_for_is_told_apart() -> None:
    by_doctor, by_attention = await asked(1, seed=3, only="waits")
    assert {name: list(words) for name, words in by_doctor.items()} == {
        name: [right(name, "doctor")] for name in by_doctor
    }
    assert misses(by_attention, "attention") == 0
