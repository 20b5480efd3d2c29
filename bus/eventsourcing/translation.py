"""Errors of the bus as errors of the library: what comes out of a recorder is of its PersistenceError family."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from eventsourcing.persistence import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
)

from bus.errors import (
    BusError,
    InvalidName,
    MalformedMessage,
    Misconfigured,
    NoResponders,
    NotFound,
    SettingsError,
    TooLarge,
    TooMany,
    Unavailable,
)
from bus.eventsourcing.append import Conflict


@contextmanager
def translated() -> Iterator[None]:
    """The library's errors instead of ours."""
    try:
        yield
    except Conflict as error:
        raise IntegrityError(str(error)) from error
    except (TooLarge, InvalidName, MalformedMessage) as error:
        raise DataError(str(error)) from error
    except (Unavailable, NoResponders) as error:
        raise OperationalError(str(error)) from error
    except (TooMany, Misconfigured, NotFound) as error:
        raise ProgrammingError(str(error)) from error
    except SettingsError as error:
        raise InterfaceError(str(error)) from error
    except BusError as error:
        raise DatabaseError(str(error)) from error
