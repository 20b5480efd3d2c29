"""A closed notebook: for work that is done again and does nothing outside. What was done then is found done, with what
came of it; what was not is refused."""

from __future__ import annotations

from bus.errors import SettingsError
from bus.handlers.notebook import Intended, Note, Notebook
from bus.replay.recorded import Past
from bus.rules.inputs import Order


def closed(past: Past, due: Order) -> Notebook:
    """What an attempt found done, and what came of what it did itself."""
    found = {name: outcome.raw for name, outcome in due.effects.items() if outcome is not None}
    found |= past.effects.get((due.phase, due.item, due.attempt), {})
    return Notebook(found, None if due.saved is None else due.saved.raw, _Closed())


class _Closed:
    """Writes nothing down, and lets nothing be done outside."""

    async def write(self, note: Note) -> None:
        self.write_now(note)

    def write_now(self, note: Note) -> None:
        if isinstance(note, Intended):
            raise SettingsError(
                f"a replay does nothing outside, and no outcome of {note.effect!r} was recorded for this attempt"
            )
