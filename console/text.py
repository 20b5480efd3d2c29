"""Words and numbers for people: payloads made harmless, times relative, durations short, rows under each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

# What a terminal would obey or hide: controls, line and paragraph separators, changes of direction, lone surrogates.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_NEWLINES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escaped(text: str) -> str:
    """`text` on one line, with everything in it visible: no payload can move the cursor or hide what follows."""
    return _CONTROL.sub(_visible, text)


def escaped_json(text: str) -> str:
    """The same for a JSON document: it stays one, and means the same."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def utf8(text: str) -> str:
    """`text` with bytes that were not UTF-8 on the line, lone surrogates here, as escapes: JSON can't carry them."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def shortened(text: str, characters: int) -> str:
    """At most so many characters of it, escaped."""
    whole = escaped(text)
    return whole if len(whole) <= characters else f"{whole[: characters - 3]}..."


def duration(seconds: float) -> str:
    """A length of time in its two largest units: 12 ms, 3.4 s, 2 min 5 s, 3 h 10 min, 4 d 2 h."""
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for name, size, smaller, part in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {name}" + (f" {rest} {smaller}" if rest else "")
    raise AssertionError("60 s and more is at least a minute")


def size(count: int) -> str:
    """A number of bytes in its largest unit: 12 B, 3.4 kB, 5.0 MB."""
    if count < 1000:
        return f"{count} B"
    amount = float(count)
    for unit in ("kB", "MB", "GB"):
        amount /= 1000
        if round(amount, 1) < 1000 or unit == "GB":
            return f"{amount:.1f} {unit}"
    raise AssertionError("the last unit is for whatever is left")


def ago(then: datetime, now: datetime) -> str:
    """How long ago it was, in its largest unit: 3 s ago, 5 min ago."""
    seconds = (now - then).total_seconds()
    if seconds < 1:
        return "now"
    name, size = next(
        (name, size) for name, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)) if seconds >= size
    )
    return f"{int(seconds // size)} {name} ago"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the columns under each other; numbers to the right."""
    cells = [[escaped(cell) for cell in row] for row in rows]
    columns = list(zip(headings, *cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(cell.isdigit() for cell in column[1:]) for column in columns]
    return [
        "  ".join(
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in [headings, *cells]
    ]


def _visible(found: re.Match[str]) -> str:
    character = found.group()
    number = ord(character)
    return _NEWLINES.get(character) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")
