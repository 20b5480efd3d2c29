"""What to say about events of types that this process does not know: once for each type, so that somebody upgrades it.

They are kept as they came and change nothing here; to whoever wrote them they mean something.
"""

from __future__ import annotations

import structlog

from bus.rules.events import EVENTS

logger = structlog.get_logger(__name__)

# Anybody who may publish can make up types, and each would be remembered and logged.
_TYPES = 100
_TYPE_CHARACTERS = 100
_said: set[str] = set()


def report(type: str, *, run: str, position: int) -> None:
    """Log that a type is unknown, unless this process has done so before."""
    # Logs are read on terminals too, and the name is whatever somebody wrote: nothing in it may move the cursor.
    shown = repr(type[:_TYPE_CHARACTERS])[1:-1]
    if shown in _said or len(_said) > _TYPES:
        return
    _said.add(shown)
    if len(_said) > _TYPES:
        logger.warning("too many unknown types of events: the rest of them is not logged", logged=_TYPES)
        return
    logger.warning(
        "events of an unknown type are kept but change nothing here: is there a newer version of this program?",
        type=shown,
        standing=EVENTS.standing(type),
        run=run,
        position=position,
    )
