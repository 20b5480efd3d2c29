"""The factory: what the library asks for recorders, by its environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import structlog
from eventsourcing.persistence import (
    ApplicationRecorder,
    InfrastructureFactory,
    ProcessRecorder,
    ProgrammingError,
)
from eventsourcing.utils import Environment, EnvType, resolve_topic, strtobool

from bus.address import find_started
from bus.broker.natscontext import read_context
from bus.errors import SettingsError
from bus.eventsourcing.events import Events
from bus.eventsourcing.lease import Lease
from bus.eventsourcing.names import EVENTS, Names
from bus.eventsourcing.recorders import (
    JetStreamAggregateRecorder,
    JetStreamApplicationRecorder,
    JetStreamProcessRecorder,
    JetStreamRecorder,
    JetStreamTrackingRecorder,
)
from bus.eventsourcing.translation import translated
from bus.logs import configure_if_not
from bus.settings import Settings

logger = structlog.get_logger(__name__)

R = TypeVar("R", bound=JetStreamRecorder)


class Factory(InfrastructureFactory[JetStreamTrackingRecorder]):
    """Recorders on JetStream. Reads NATS_URL and PHASEBUS_NAMESPACE, and the other settings of the bus.

    Data is kept apart by namespace and by the name of the environment, which is the application's. What is not there
    is created, unless CREATE_TABLE says no.
    """

    def __init__(self, env: Environment | EnvType | None) -> None:
        super().__init__(env)
        with translated():
            self._settings = Settings.load(self.env)
            configure_if_not(self._settings.log_level)
            self._lease = Lease(*_address(self._settings), self._settings)

    def aggregate_recorder(self, purpose: str = EVENTS) -> JetStreamAggregateRecorder:
        return self._recorder(JetStreamAggregateRecorder, purpose)

    def application_recorder(self) -> ApplicationRecorder:
        return self._recorder(self._class(self.APPLICATION_RECORDER_TOPIC, JetStreamApplicationRecorder))

    def tracking_recorder(
        self, tracking_recorder_class: type[JetStreamTrackingRecorder] | None = None
    ) -> JetStreamTrackingRecorder:
        chosen = tracking_recorder_class or self._class(self.TRACKING_RECORDER_TOPIC, JetStreamTrackingRecorder)
        if not issubclass(chosen, JetStreamTrackingRecorder):
            raise ProgrammingError(f"{chosen!r} can't be stored here: derive it from JetStreamTrackingRecorder")
        return self._recorder(chosen)

    def process_recorder(self) -> ProcessRecorder:
        return self._recorder(self._class(self.PROCESS_RECORDER_TOPIC, JetStreamProcessRecorder))

    def close(self) -> None:
        """Waits for nothing, and may be called again. Who waits in a recorder of this factory gets OperationalError."""
        # Not there if the settings were refused.
        if lease := self.__dict__.get("_lease"):
            lease.close()

    def _class(self, variable: str, default: type[R]) -> type[R]:
        topic = self.env.get(variable)
        if not topic:
            return default
        chosen: Any = resolve_topic(topic)
        if not (isinstance(chosen, type) and issubclass(chosen, default)):
            raise ProgrammingError(f"{variable}: {topic!r} is not a class derived from {default.__name__}")
        return chosen

    def _recorder(self, kind: type[R], purpose: str = EVENTS) -> R:
        create = strtobool(self.env.get("CREATE_TABLE") or "yes")
        with translated():
            events = Events(Names(self._settings.namespace, self.env.name, purpose), self._settings)
            self._lease.call(lambda line: events.set_up(line, create=create))
        return kind(self._lease, events)


def _address(settings: Settings) -> tuple[str, Path | None]:
    """Where `bus.connect` would go, but never to a server of our own: what is stored is meant to stay."""
    if settings.url is not None:
        return settings.url.get_secret_value(), settings.credentials
    if settings.context is not None:
        context = read_context(settings.context)
        return context.login_url, settings.credentials or context.credentials
    started = find_started(logger.warning)
    if started is None:
        raise SettingsError(
            "no bus found: set NATS_URL in the application's env or the process's environment, or start one with "
            "`phasebus up` in this folder or above"
        )
    return started.url, None
