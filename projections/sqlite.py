"""The shelf in a file: the library's recorder for SQLite, with connections of our own."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eventsourcing.persistence import PersistenceError
from eventsourcing.sqlite import (
    SQLiteConnection,
    SQLiteConnectionPool,
    SQLiteCursor,
    SQLiteDatastore,
    SQLiteTrackingRecorder,
    SQLiteTransaction,
)

from projections.shelf import TABLES, Shelf, ShelfDamaged

_LOCK_TIMEOUT_S = 10.0
_STATEMENTS = 64
_LOCKED_PAUSE_S = 0.005
# A checkpoint is told to happen: what happens by itself delays the commit that it falls into.
_PRAGMAS = (
    "PRAGMA synchronous=NORMAL",
    "PRAGMA wal_autocheckpoint=0",
)


class _Connection(SQLiteConnection):
    """Who is going to write waits for others who write when he begins, not when he has read what he builds on."""

    @contextmanager
    def transaction(self, *, commit: bool) -> Iterator[SQLiteCursor]:
        transaction = _Writing(self, commit=True) if commit else SQLiteTransaction(self)
        with transaction as cursor, cursor:
            yield cursor


class _Writing(SQLiteTransaction):
    def __enter__(self) -> SQLiteCursor:
        cursor = self.connection.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        return cursor


class _Pool(SQLiteConnectionPool):
    """Connections that do not wait for the disk at each commit: what a power cut takes is folded again."""

    def _create_connection(self) -> SQLiteConnection:
        opened = sqlite3.connect(
            self.db_name,
            uri=True,
            check_same_thread=False,
            isolation_level=None,
            timeout=_LOCK_TIMEOUT_S,
            cached_statements=_STATEMENTS,
        )
        opened.row_factory = sqlite3.Row
        try:
            _log_ahead(opened)
            for pragma in _PRAGMAS:
                opened.execute(pragma)
        except sqlite3.Error:
            opened.close()
            raise
        return _Connection(opened, max_age=self.max_age)

    def checkpoint(self) -> None:
        connection = self.get_connection()
        try:
            with connection.cursor() as cursor:
                cursor.execute("PRAGMA wal_checkpoint(PASSIVE)")
        finally:
            self.put_connection(connection)


def _log_ahead(opened: sqlite3.Connection) -> None:
    """The switch of a new file to its write-ahead log does not wait for another's, whatever the timeout: we do."""
    until = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            opened.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(_LOCKED_PAUSE_S)
        else:
            return


class _SQLite(SQLiteTrackingRecorder):
    def construct_create_table_statements(self) -> list[str]:
        return [*super().construct_create_table_statements(), *TABLES]

    def create_table(self) -> None:
        try:
            super().create_table()
        except PersistenceError:
            # Another process made them at the same moment, or it can't be done at all.
            super().create_table()


def open_sqlite(path: Path) -> Shelf:
    """Raises ShelfDamaged."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        datastore = SQLiteDatastore(str(path))
        datastore.pool.close()
        datastore.pool = pool = _Pool(db_name=str(path))
        recorder = _SQLite(datastore)
        recorder.create_table()
    except (PersistenceError, sqlite3.Error, OSError) as error:
        raise ShelfDamaged(f"{path} can't hold projections: {error}") from error
    return Shelf(recorder, checkpoint=pool.checkpoint)
