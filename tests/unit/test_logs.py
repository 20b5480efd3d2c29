"""Logging: whatever is said, it is one line of JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from bus import logs


@pytest.fixture
def said() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    logs.configure("info", stream=stream)
    yield stream
    structlog.reset_defaults()


def test_bytes_of_a_vandal_in_a_subject_do_not_end_whoever_logs_them(said: io.StringIO) -> None:
    structlog.get_logger().warning("record set aside", subject="bus.topic.\udcff", what=object)
    [line] = said.getvalue().splitlines()
    assert json.loads(line)["subject"] == "bus.topic.\udcff"
    assert line.isascii()
