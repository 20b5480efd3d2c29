# One command for people and CI: `make check` is what `.ci/run` calls, without the set-up.
.PHONY: check test format bench recovery causes chaos demo

check:
	uv run pytest

test:
	uv run pytest --ignore=tests/gates

format:
	uv run ruff check --fix bus agents projections console benchmarks examples tests
	uv run ruff format bus agents projections console benchmarks examples tests

bench:
	uv run python -m benchmarks.runs
	uv run python -m benchmarks.forecasts

recovery:
	uv run python -m benchmarks.recovery

causes:
	uv run python -m benchmarks.causes

chaos:
	uv run python -m benchmarks.chaos

demo:
	uv run phasebus demo
