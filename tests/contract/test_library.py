"""The cases that `eventsourcing` ships for persistence modules, on ours. docs/eventsourcing.md lists what is left out.

Its names are not ours: a class here is one of theirs, with what it asks for.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, ClassVar
from unittest import TestCase
from uuid import uuid4

import pytest
from eventsourcing.persistence import ProcessRecorder
from eventsourcing.tests import application, domain, persistence, projection
from eventsourcing.utils import Environment

from bus.eventsourcing import (
    Factory,
    JetStreamAggregateRecorder,
    JetStreamApplicationRecorder,
    JetStreamProcessRecorder,
    JetStreamTrackingRecorder,
)
from tests.contract.views import EventCounters

# What they print is for people who watch them, and they leave reader threads behind for a moment.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def factory(name: str = "Conformance") -> Factory:
    return Factory(Environment(name, dict(os.environ)))


class _Made:
    """Recorders of one kind; the factory is closed after each case."""

    kind = "application_recorder"
    arguments: tuple[Any, ...] = ()

    def setUp(self) -> None:
        self.factory = factory()

    def tearDown(self) -> None:
        self.factory.close()

    def create_recorder(self) -> Any:
        return getattr(self.factory, self.kind)(*self.arguments)


class _Text:
    """The same with ids that are text, with all that a subject can't carry."""

    def new_originator_id(self) -> str:
        return f"a.b c>*%/größe/{uuid4()}"


class TestAggregateRecorder(_Made, persistence.AggregateRecorderTestCase):
    kind = "aggregate_recorder"


class TestAggregateRecorderText(_Text, TestAggregateRecorder):
    pass


class TestSnapshotRecorder(_Made, persistence.AggregateRecorderTestCase):
    kind = "aggregate_recorder"
    arguments = ("snapshots",)


class TestSnapshotRecorderText(_Text, TestSnapshotRecorder):
    pass


class TestApplicationRecorder(_Made, persistence.ApplicationRecorderTestCase):
    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class TestApplicationRecorderText(_Text, TestApplicationRecorder):
    pass


class TestTrackingRecorder(_Made, persistence.TrackingRecorderTestCase):
    kind = "tracking_recorder"


class TestProcessRecorder(_Made, persistence.ProcessRecorderTestCase):
    kind = "process_recorder"


class TestProcessRecorderText(_Text, TestProcessRecorder):
    pass


class TestProcessRecorderAsApplicationRecorder(_Made, persistence.ApplicationRecorderTestCase):
    kind = "process_recorder"

    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class TestProcessRecorderAsTrackingRecorder(_Made, persistence.TrackingRecorderTestCase):
    kind = "process_recorder"


class TestNonInterleaving(_Made, persistence.NonInterleavingNotificationIDsBaseCase):
    pass


class _Subclass(JetStreamTrackingRecorder):
    pass


class TestFactory(persistence.InfrastructureFactoryTestCase[Factory]):
    def setUp(self) -> None:
        self.env = Environment("Conformance", dict(os.environ))
        super().setUp()

    def expected_factory_class(self) -> type[Factory]:
        return Factory

    def expected_aggregate_recorder_class(self) -> type[JetStreamAggregateRecorder]:
        return JetStreamAggregateRecorder

    def expected_application_recorder_class(self) -> type[JetStreamApplicationRecorder]:
        return JetStreamApplicationRecorder

    def expected_tracking_recorder_class(self) -> type[JetStreamTrackingRecorder]:
        return JetStreamTrackingRecorder

    def tracking_recorder_subclass(self) -> type[JetStreamTrackingRecorder]:
        return _Subclass

    def expected_process_recorder_class(self) -> type[ProcessRecorder]:
        return JetStreamProcessRecorder


class TestExampleApplication(application.ExampleApplicationTestCase):
    expected_factory_topic = "bus.eventsourcing.factory:Factory"


class TestExampleApplicationEncrypted(TestExampleApplication):
    @pytest.fixture(autouse=True)
    def _cipher(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from eventsourcing.cipher import AESCipher

        monkeypatch.setenv("CIPHER_TOPIC", "eventsourcing.cipher:AESCipher")
        monkeypatch.setenv("CIPHER_KEY", AESCipher.create_key(16))
        monkeypatch.setenv("COMPRESSOR_TOPIC", "zlib")


# One case looks for a deprecation of the library's own.
@pytest.mark.filterwarnings("always::DeprecationWarning")
class TestApplication(application.ApplicationTestCase):
    pass


class TestView(projection.EventCountersViewTestCase):
    def construct_event_counters_view(self) -> projection.EventCountersView:
        return factory("View").tracking_recorder(EventCounters)  # type: ignore[return-value]


class TestProjection(projection.AggregateEventCountersProjectionTestCase):
    view_class = EventCounters


class TestEventSourcedProjection(projection.EventSourcedProjectionTestCase):
    env: ClassVar[dict[str, str]] = {}


def test_every_case_of_the_library_is_run_or_named_with_its_reason() -> None:
    run = {base for case in _cases(sys.modules[__name__]) for base in case.__mro__}
    document = (Path(__file__).parents[2] / "docs" / "eventsourcing.md").read_text()
    for module in (application, persistence, projection, domain):
        for case in _cases(module):
            if case.__module__ == module.__name__ and case not in run:
                assert f"`{case.__name__}`" in document


def _cases(module: Any) -> list[type[TestCase]]:
    return [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, TestCase)]
