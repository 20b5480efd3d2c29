"""Where results go: lines and tables for people, one JSON document per line for programs. Hints go to stderr."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
import msgspec

from bus.rules.run import Output
from console.text import escaped_json, table


class Printer:
    """What a command says. With `as_json`, `record` speaks, otherwise `line` and `table`; `hint` always does."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def record(self, value: object) -> None:
        """One result for a program."""
        click.echo(to_json(value))

    def line(self, text: str = "") -> None:
        """One result for a person. Whatever came from a payload has been escaped by now."""
        click.echo(text)

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Results for a person, under headings."""
        for text in table(headings, rows):
            click.echo(text)

    def hint(self, text: str) -> None:
        """What is not a result: on stderr."""
        click.echo(text, err=True)


def to_json(value: object) -> str:
    """One line of JSON. Times are ISO 8601 in UTC."""
    # What others wrote into the log is kept as it came, line breaks between members included.
    compact = msgspec.json.format(msgspec.json.encode(value, enc_hook=_outputs), indent=-1)
    return escaped_json(_text(compact))


def pretty_json(value: object) -> list[str]:
    """The lines of an indented document, for people."""
    indented = msgspec.json.format(msgspec.json.encode(value, enc_hook=_outputs), indent=2)
    return [escaped_json(line) for line in _text(indented).split("\n")]


def _text(document: bytes) -> str:
    # What others wrote into the log need not be UTF-8.
    return document.decode(errors="replace")


def _outputs(value: Any) -> Any:
    if isinstance(value, Output):
        return value.raw
    raise NotImplementedError
