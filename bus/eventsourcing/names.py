"""Names of streams and subjects: one stream for an application's events and positions, one per other purpose.

Application names and ids may hold any character: what a subject can't carry is written as `%` and two hex digits.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, unquote

from bus.errors import InvalidName

EVENTS = "events"
_EMPTY = "%"  # what no quoting gives
_PURPOSE = re.compile(r"[a-z]{1,30}")
_STREAM_BYTES = 255
_SUBJECT_BYTES = 1024


def token(text: str) -> str:
    """`text` as one token of a subject, and back with `untoken`. Raises InvalidName for what is not Unicode."""
    try:
        return quote(text, safe="").replace(".", "%2E") or _EMPTY
    except UnicodeEncodeError as error:
        raise InvalidName(f"{text!r} can't be stored: it is not Unicode text ({error.reason})") from error


def untoken(text: str) -> str:
    return "" if text == _EMPTY else unquote(text)


class Names:
    """Where the data of one application is, for one purpose: `events`, `snapshots` or any other word."""

    def __init__(self, namespace: str, application: str, purpose: str = EVENTS) -> None:
        if not _PURPOSE.fullmatch(purpose):
            raise InvalidName(f"purpose {purpose!r} is not a word: use a-z")
        # The purpose is lower case: no other namespace's own streams, which are upper case, can have this name.
        self.stream = f"{namespace.upper()}_{purpose}_{token(application)}"
        if len(self.stream) > _STREAM_BYTES:
            raise InvalidName(
                f"application name {application[:40]!r}... is too long: its stream's name has > 255 bytes"
            )
        self.is_law = purpose == EVENTS
        self._prefix = f"{namespace}.es.{token(application)}"
        self._events = f"{self._prefix}.{purpose}"
        self.all_events = f"{self._events}.*.*"
        self.all_positions = f"{self._prefix}.positions.*"

    def event(self, id: str, version: int) -> str:
        """One message for ever: who stores a second one there is refused."""
        return _checked(f"{self._events}.{token(id)}.{version}")

    def aggregate(self, id: str) -> str:
        """Filter for all events of one aggregate."""
        return _checked(f"{self._events}.{token(id)}.*")

    def position(self, upstream: str) -> str:
        """How far this application has got with another one's events: one message, replaced."""
        return _checked(f"{self._prefix}.positions.{token(upstream)}")

    def config(self, replicas: int) -> dict[str, Any]:
        """The stream as it has to be.

        One message per subject, so a position is replaced by the next one without any right to roll up, delete or
        purge. An event is stored only where nothing is yet. Snapshots can be made again, so they may be purged.
        """
        config: dict[str, Any] = {
            "name": self.stream,
            "subjects": [self.all_events, self.all_positions] if self.is_law else [self.all_events],
            "retention": "limits",
            "storage": "file",
            "num_replicas": replicas,
            "discard": "new",
            "max_msgs_per_subject": 1,
            "deny_delete": self.is_law,
            "deny_purge": self.is_law,
            "allow_direct": True,
            "allow_atomic": True,
        }
        if self.is_law:
            # Without the body: it only says that there is more, and up to where. Readers read from their own position.
            config["republish"] = {
                "src": f"{self._prefix}.>",
                "dest": live(f"{self._prefix}.>"),
                "headers_only": True,
            }
        return config


def live(subject: str) -> str:
    """Where the server says that something was stored on `subject`."""
    return f"live.{subject}"


def _checked(subject: str) -> str:
    if len(subject) > _SUBJECT_BYTES:
        raise InvalidName(f"{subject[:60]!r}... has {len(subject)} bytes as a subject, the limit is {_SUBJECT_BYTES}")
    return subject
