"""The shelf on PostgreSQL: the library's recorder for it, with the same tables."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from bus.errors import SettingsError
from projections.shelf import TABLES, Shelf, ShelfDamaged

_TRACKING = "phasebus_tracking"


def open_postgres(url: str) -> Shelf:
    """Raises SettingsError if the driver is not installed, ShelfDamaged."""
    try:
        from eventsourcing.persistence import PersistenceError  # noqa: PLC0415 - see below
        from eventsourcing.postgres import PostgresDatastore, PostgresTrackingRecorder  # noqa: PLC0415 - an extra
    except ImportError:
        raise SettingsError(f"projections {url!r}: pip install 'phasebus[postgres]' brings the driver") from None
    parts = urlsplit(url)
    try:
        datastore = PostgresDatastore(
            dbname=parts.path.removeprefix("/") or "postgres",
            host=parts.hostname or "127.0.0.1",
            port=parts.port or 5432,
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            pool_size=2,
            max_overflow=8,
        )
        recorder = PostgresTrackingRecorder(datastore, tracking_table_name=_TRACKING)
        recorder.create_table()
        with datastore.transaction(commit=True) as cursor:
            for statement in TABLES:
                cursor.execute(statement.encode())
    except PersistenceError as error:
        raise ShelfDamaged(f"projections can't be kept there: {error}") from error
    return Shelf(recorder, tracking=_TRACKING, placeholder="%s", lock=" FOR UPDATE")
