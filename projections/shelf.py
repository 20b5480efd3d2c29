"""The shelf: where projections' rows are kept, with the position they are as of, in one transaction.

It is a tracking recorder of the `eventsourcing` library, with tables of its own beside that one's. A projection stands
on it as a *build*: rows made by one version of its fold from one log. Another build can grow beside the one that is
served, and takes its place when it has caught up.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol, get_type_hints
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec
from eventsourcing.persistence import PersistenceError, Tracking
from eventsourcing.sqlite import (
    SQLiteConnection,
    SQLiteConnectionPool,
    SQLiteDatastore,
    SQLiteTrackingRecorder,
)

from bus.errors import BusError, SettingsError
from bus.rules.run import Output
from projections.projection import MEMORY, Aside, Projection, R

# The large text is last: a list reads glances without it.
TABLES = (
    """CREATE TABLE IF NOT EXISTS phasebus_builds (
        build TEXT PRIMARY KEY, projection TEXT NOT NULL, version BIGINT NOT NULL, log TEXT NOT NULL,
        served BIGINT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS phasebus_rows (
        build TEXT, key TEXT, position BIGINT NOT NULL, glance_json TEXT, row_json TEXT, PRIMARY KEY (build, key))""",
    "CREATE INDEX IF NOT EXISTS phasebus_rows_position ON phasebus_rows (build, position)",
    """CREATE TABLE IF NOT EXISTS phasebus_history (
        build TEXT, key TEXT, position BIGINT, row_json TEXT, PRIMARY KEY (build, key, position))""",
    """CREATE TABLE IF NOT EXISTS phasebus_marks (build TEXT, position BIGINT, PRIMARY KEY (build, position))""",
    """CREATE TABLE IF NOT EXISTS phasebus_asides (
        build TEXT, position BIGINT, place BIGINT, subject TEXT NOT NULL, reason TEXT NOT NULL,
        PRIMARY KEY (build, position, place))""",
)
_OF_A_BUILD = ("phasebus_rows", "phasebus_history", "phasebus_marks", "phasebus_asides", "phasebus_builds")


class Moved(Exception):
    """Somebody else has folded further, or replaced the build: look again where it stands."""


class ShelfDamaged(BusError):
    """The database with the projections' rows can't be read or written. It can be removed: the log has everything."""


class Build(msgspec.Struct, frozen=True):
    """Rows of one projection, made by one version of its fold from one log; `is_served` is the one to be read.

    `log` tells one log from another, also of the same name: a shelf may hold rows of several.
    """

    id: str
    projection: str
    version: int
    log: str
    is_served: bool


class Change(msgspec.Struct, frozen=True):
    """A row as it is now, and what a list shows of it. Without text, it is gone."""

    key: str
    row: str | None
    glance: str | None = None


class Step(msgspec.Struct, frozen=True):
    """What a stretch of the log made of one build: from `before` to `position`. `marks`: it is to be found again as of
    then."""

    build: str
    before: int
    position: int
    changes: Sequence[Change]
    asides: Sequence[Aside] = ()
    marks: bool = False


class Recorder(Protocol):
    """A tracking recorder of the library whose transactions can be joined."""

    datastore: Any

    def _insert_tracking(self, cursor: Any, tracking: Tracking, /) -> None: ...

    def _max_tracking_id(self, application_name: str, cursor: Any, /) -> int | None: ...


class Look(Protocol):
    """Finds one row as JSON, as it is now, or as of a mark."""

    def __call__(self, build: str, key: str, mark: int | None = None, /) -> str | None: ...


class Shelf:
    """Every build on one database. Its calls block: they are for a thread. Raises ShelfDamaged."""

    def __init__(self, recorder: Recorder, placeholder: str = "?") -> None:
        self._recorder = recorder
        self._placeholder = placeholder

    def close(self) -> None:
        self._recorder.datastore.close()

    def builds(self) -> list[Build]:
        """Every build there is, by projection, the served one first."""
        with self._transaction(commit=False) as cursor:
            found = self._run(cursor, "SELECT * FROM phasebus_builds ORDER BY projection, served DESC, build")
            return [
                Build(row["build"], row["projection"], row["version"], row["log"], bool(row["served"]))
                for row in found.fetchall()
            ]

    def begin(self, projection: str, version: int, log: str) -> Build:
        """A new build with no rows yet."""
        build = Build(f"{projection}/{version}/{uuid4().hex[:8]}", projection, version, log, is_served=False)
        with self._transaction(commit=True) as cursor:
            row = (build.id, projection, version, log, 0)
            self._run(cursor, "INSERT INTO phasebus_builds VALUES (?, ?, ?, ?, ?)", row)
        return build

    def serve(self, build: Build) -> None:
        """Put a build in the place of the one that is served, which goes with all its rows. Raises Moved."""
        with self._transaction(commit=True) as cursor:
            self._check(cursor, build.id)
            found = self._run(
                cursor,
                "SELECT build FROM phasebus_builds WHERE projection = ? AND build <> ?",
                (build.projection, build.id),
            )
            for other in [row["build"] for row in found.fetchall()]:
                for table in _OF_A_BUILD:
                    self._run(cursor, f"DELETE FROM {table} WHERE build = ?", (other,))  # noqa: S608 - our own names
            self._run(cursor, "UPDATE phasebus_builds SET served = 1 WHERE build = ?", (build.id,))

    def position(self, build: str) -> int:
        """The position the build's rows are as of, 0 for none."""
        with self._transaction(commit=False) as cursor:
            return self._recorder._max_tracking_id(build, cursor) or 0

    def save(self, steps: Iterable[Step]) -> None:
        """Store what was folded, with the position: all of it, or nothing. Raises Moved."""
        with self._transaction(commit=True) as cursor:
            for step in steps:
                self._check(cursor, step.build)
                if (self._recorder._max_tracking_id(step.build, cursor) or 0) != step.before:
                    raise Moved
                self._store(cursor, step)
                self._recorder._insert_tracking(cursor, Tracking(step.build, step.position))

    def row(self, build: str, key: str, *, mark: int | None = None) -> str | None:
        """One row as JSON, as it is now, or as of a mark."""
        with self.looking() as look:
            return look(build, key, mark)

    @contextmanager
    def looking(self) -> Iterator[Look]:
        """What finds one row after the other, within one transaction and one thread."""
        with self._transaction(commit=False) as cursor:

            def look(build: str, key: str, mark: int | None = None) -> str | None:
                found = self._run(cursor, *_one_row(build, key, mark)).fetchone()
                return None if found is None else found["row_json"]

            yield look

    def rows(self, build: str, *, mark: int | None = None) -> list[tuple[str, str]]:
        """Every row as JSON, by key, as it is now, or as of a mark."""
        select = "SELECT key, row_json FROM phasebus_rows WHERE build = ? AND row_json IS NOT NULL ORDER BY key"
        given: tuple[Any, ...] = (build,)
        if mark is not None:
            select = (
                "SELECT h.key, h.row_json FROM phasebus_history h JOIN (SELECT key, MAX(position) AS newest FROM "
                "phasebus_history WHERE build = ? AND position <= ? GROUP BY key) n ON n.key = h.key AND "
                "n.newest = h.position WHERE h.build = ? AND h.row_json IS NOT NULL ORDER BY h.key"
            )
            given = (build, mark, build)
        with self._transaction(commit=False) as cursor:
            return [(row["key"], row["row_json"]) for row in self._run(cursor, select, given).fetchall()]

    def glances(self, build: str) -> list[tuple[str, str]]:
        """What a list shows, as JSON, by key."""
        select = "SELECT key, glance_json FROM phasebus_rows WHERE build = ? AND glance_json IS NOT NULL ORDER BY key"
        with self._transaction(commit=False) as cursor:
            return [(row["key"], row["glance_json"]) for row in self._run(cursor, select, (build,)).fetchall()]

    def changed(
        self, build: str, after: int, past: str | None, *, glances: bool, limit: int
    ) -> tuple[int, list[tuple[str, int, str | None]]]:
        """What has changed after a position, or with `past` at it under later keys: key, position, JSON if it is there.

        In order of position and key, at most `limit` of them; and before them the position they are as of. A row
        may be newer than that, where somebody stores at that moment; it is not older.
        """
        text = "COALESCE(glance_json, row_json)" if glances else "row_json"
        since = "position > ?" if past is None else "position >= ? AND (position > ? OR key > ?)"
        given = (after,) if past is None else (after, after, past)
        select = (
            f"SELECT key, position, {text} AS text FROM phasebus_rows WHERE build = ? AND {since} "  # noqa: S608 - our own words
            "AND substr(key, 1, 1) <> ? ORDER BY position, key LIMIT ?"
        )
        with self._transaction(commit=False) as cursor:
            # First: what is stored in between may come twice, and is not missed.
            position = self._recorder._max_tracking_id(build, cursor) or 0
            found = self._run(cursor, select, (build, *given, MEMORY, limit))
            return position, [(row["key"], row["position"], row["text"]) for row in found.fetchall()]

    def mark(self, build: str, upto: int) -> int:
        """The newest mark at or before a position, 0 if there is none."""
        select = "SELECT MAX(position) AS mark FROM phasebus_marks WHERE build = ? AND position <= ?"
        with self._transaction(commit=False) as cursor:
            return self._run(cursor, select, (build, upto)).fetchone()["mark"] or 0

    def asides(self, build: str) -> list[Aside]:
        """What was passed over, oldest first."""
        select = "SELECT * FROM phasebus_asides WHERE build = ? ORDER BY position, place"
        with self._transaction(commit=False) as cursor:
            found = self._run(cursor, select, (build,)).fetchall()
            return [Aside(row["position"], row["place"], row["subject"], row["reason"]) for row in found]

    def _store(self, cursor: Any, step: Step) -> None:
        self._run_many(
            cursor,
            "INSERT INTO phasebus_rows (build, key, row_json, glance_json, position) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (build, key) DO UPDATE SET "
            "row_json = excluded.row_json, glance_json = excluded.glance_json, position = excluded.position",
            [(step.build, each.key, each.row, each.glance, step.position) for each in step.changes],
        )
        self._run_many(
            cursor,
            "INSERT INTO phasebus_asides VALUES (?, ?, ?, ?, ?)",
            [(step.build, aside.position, aside.index, aside.subject, aside.reason) for aside in step.asides],
        )
        if step.marks:
            self._run(
                cursor,
                "INSERT INTO phasebus_history SELECT build, key, ?, row_json FROM phasebus_rows WHERE build = ? AND "
                "position > (SELECT COALESCE(MAX(position), 0) FROM phasebus_marks WHERE build = ?)",
                (step.position, step.build, step.build),
            )
            self._run(cursor, "INSERT INTO phasebus_marks VALUES (?, ?)", (step.build, step.position))

    def _check(self, cursor: Any, build: str) -> None:
        if self._run(cursor, "SELECT 1 AS there FROM phasebus_builds WHERE build = ?", (build,)).fetchone() is None:
            raise Moved

    def _run(self, cursor: Any, statement: str, given: Sequence[Any] = ()) -> Any:
        cursor.execute(statement.replace("?", self._placeholder), given)
        return cursor

    def _run_many(self, cursor: Any, statement: str, given: Sequence[Sequence[Any]]) -> None:
        if given:
            cursor.executemany(statement.replace("?", self._placeholder), given)

    @contextmanager
    def _transaction(self, *, commit: bool) -> Iterator[Any]:
        try:
            opened: AbstractContextManager[Any] = self._recorder.datastore.transaction(commit=commit)
            with opened as cursor:
                yield cursor
        except PersistenceError as error:
            raise ShelfDamaged(f"the projections' database does not work: {error}") from error


def _one_row(build: str, key: str, mark: int | None) -> tuple[str, tuple[Any, ...]]:
    if mark is None:
        return "SELECT row_json FROM phasebus_rows WHERE build = ? AND key = ?", (build, key)
    select = (
        "SELECT row_json FROM phasebus_history WHERE build = ? AND key = ? AND position <= ? "
        "ORDER BY position DESC LIMIT 1"
    )
    return select, (build, key, mark)


def encoded(value: object) -> str:
    """A row, or a glance at it, as text. What was stored as JSON in a run stays so to the byte, inside of text."""
    return msgspec.json.encode(value, enc_hook=_as_text).decode()


def decoder(projection: Projection[R]) -> Callable[[str, str], R]:
    """What makes a projection's row of its key and its text again."""
    read = msgspec.json.Decoder(projection.row, dec_hook=_of_text).decode
    remember = msgspec.json.Decoder(projection.memory, dec_hook=_of_text).decode

    def decode(key: str, text: str) -> R:
        row: R = remember(text) if key.startswith(MEMORY) else read(text)
        return row

    return decode


def schema(projection: Projection[Any], *, glances: bool = False) -> dict[str, Any]:
    """The JSON Schema of a row as it is stored and sent; or of what a list shows of it, which has to be annotated.

    Raises SettingsError.
    """
    kind = projection.row
    if glances:
        kind = get_type_hints(projection.glance).get("return") if projection.glance is not None else None
        if kind is None:
            raise SettingsError(f"projection {projection.name!r} does not say what a glance at its rows is")
    found: dict[str, Any] = msgspec.json.schema(kind, schema_hook=_text_schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def _text_schema(kind: Any) -> dict[str, Any]:
    if kind is Output:
        return {"type": "string", "contentMediaType": "application/json"}
    if kind is object:
        return {}
    raise NotImplementedError(kind)


def _as_text(value: Any) -> Any:
    if isinstance(value, Output):
        return bytes(value.raw).decode()
    raise NotImplementedError(f"{type(value).__name__} has no form in JSON")


def _of_text(kind: type[Any], value: Any) -> Any:
    if kind is Output:
        return Output(value.encode())
    raise NotImplementedError(f"{kind.__name__} has no form in JSON")


def open_shelf(url: str) -> Shelf:
    """The shelf at `sqlite:///FILE` (absolute with a fourth slash) or `postgresql://...`, made if it is not there.

    Raises SettingsError for another address, ShelfDamaged.
    """
    scheme = urlsplit(url).scheme
    if scheme == "sqlite":
        return _sqlite(Path(url.removeprefix("sqlite:///")))
    if scheme in {"postgresql", "postgres"}:
        from projections.postgres import open_postgres  # noqa: PLC0415 - its driver is an extra

        return open_postgres(url)
    raise SettingsError(f"projections {url!r}: it begins with sqlite:/// or postgresql://")


class _Pool(SQLiteConnectionPool):
    """Connections that do not wait for the disk at each commit: what a power cut takes is folded again."""

    def _create_connection(self) -> SQLiteConnection:
        connection = super()._create_connection()
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA synchronous=NORMAL")
            cursor.execute("PRAGMA wal_autocheckpoint=8000")
        return connection


class _SQLite(SQLiteTrackingRecorder):
    def construct_create_table_statements(self) -> list[str]:
        return [*super().construct_create_table_statements(), *TABLES]


def _sqlite(path: Path) -> Shelf:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        datastore = SQLiteDatastore(str(path))
        datastore.pool.close()
        datastore.pool = _Pool(db_name=str(path), lock_timeout=10)
        recorder = _SQLite(datastore)
        recorder.create_table()
    except (PersistenceError, sqlite3.Error, OSError) as error:
        raise ShelfDamaged(f"{path} can't hold projections: {error}") from error
    return Shelf(recorder)
