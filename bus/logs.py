"""Logs: structlog, one JSON object per line on stderr, with run, phase, attempt, agent and correlation id bound."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any, Literal, TextIO

import msgspec
import structlog

Level = Literal["debug", "info", "warning", "error"]


_chosen: tuple[Level, bool] = ("info", False)


def configure(level: Level = "info", *, pretty: bool = False, stream: TextIO | None = None) -> None:
    """Set up logging for this process: what is bound to the current context appears on every line of it.

    `pretty` is for eyes; JSON (the default) is for machines.
    """
    global _chosen  # noqa: PLW0603 - structlog's configuration is the process's too
    _chosen = (level, pretty)
    render: list[Any] = [structlog.dev.ConsoleRenderer(colors=False)] if pretty else [_to_json]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            *([] if pretty else [structlog.processors.format_exc_info]),
            *render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(stream or sys.stderr),
    )


def chosen() -> tuple[Level, bool]:
    """Level and prettiness of this process, for a child that is to log like it."""
    return _chosen


def configure_if_not(level: Level) -> None:
    """As `configure`, unless the program has set up structlog itself: unset, structlog prints to stdout."""
    if not structlog.is_configured():
        configure(level)


def _to_json(_logger: object, _method: str, event: dict[str, Any]) -> str:
    first = {name: event.pop(name) for name in ("timestamp", "level", "event") if name in event}
    try:
        return msgspec.json.encode(first | event, enc_hook=repr).decode()
    except UnicodeEncodeError:
        # Bytes that are not UTF-8, of a subject for example: a line about them must not end whoever writes it.
        return json.dumps(first | event, default=repr)
