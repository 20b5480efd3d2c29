"""A withdrawal: who asked without the log tells who works on it that nobody waits any more.

Most questions are answered before it would be worth while to listen for that. A run's name can't be guessed, so only
who asked can withdraw it.
"""

from __future__ import annotations

from types import TracebackType

from bus.alarms import Alarms
from bus.broker.connection import Connection, Message, Subscription
from bus.errors import Unavailable
from bus.handlers.context import Pulse

_LISTENS_S = 0.025


class Withdrawal:
    """Heard while the block runs, from a moment after its beginning on: `pulse` is dropped then."""

    def __init__(self, connection: Connection, alarms: Alarms, subject: str, pulse: Pulse) -> None:
        self._connection = connection
        self._alarms = alarms
        self._subject = subject
        self._pulse = pulse
        self._alarm = -1
        self._listening: Subscription | None = None

    def __enter__(self) -> None:
        self._alarm = self._alarms.set(_LISTENS_S, self._listen)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._alarms.clear(self._alarm)
        if self._listening is not None:
            self._listening.unsubscribe()

    def _listen(self) -> None:
        try:
            self._listening = self._connection.subscribe(self._subject, self._hear)
        except Unavailable:
            # The connection is closed: nobody hears anything any more.
            self._pulse.drop("the connection is closed")

    def _hear(self, message: Message) -> None:
        self._pulse.drop("nobody waits for the answer")
        if message.reply:
            self._connection.publish(message.reply)
