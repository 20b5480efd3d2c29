"""The same shelf on PostgreSQL, where one is installed: what holds of a file holds of a server.

One test, since it starts a server of its own on a port of its own.
"""

from __future__ import annotations

import pytest

from benchmarks.postgres import postgres
from bus.broker.server import embedded
from bus.errors import SettingsError
from projections.shelf import open_shelf
from tests.integration import test_runner as on_a_file

CHECKS = [
    on_a_file.test_rows_and_position_are_kept_and_a_second_process_goes_on_from_there,
    on_a_file.test_what_happens_reaches_the_rows_while_the_runner_runs,
    on_a_file.test_a_rebuild_grows_beside_the_served_build_and_takes_its_place_whole,
    on_a_file.test_a_new_version_of_a_fold_is_built_from_the_beginning,
    on_a_file.test_an_event_the_fold_can_not_take_is_set_aside_with_its_reason_and_nothing_else,
    on_a_file.test_two_runners_of_the_same_projection_end_with_the_same_rows_as_one,
    on_a_file.test_rows_of_another_log_are_not_served_as_this_one_s,
]


async def test_a_shelf_on_postgresql_keeps_what_one_in_a_file_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    with postgres() as found:
        if found is None:
            pytest.skip("no PostgreSQL, or no driver for it, is installed here")
        url = f"postgresql://{found['POSTGRES_USER']}@{found['POSTGRES_HOST']}:{found['POSTGRES_PORT']}/postgres"
        # All builds of all logs stand on one shelf, as they would in production.
        for check in CHECKS:
            shelf = open_shelf(url)
            try:
                async with embedded() as server:
                    await check(server, shelf)
            finally:
                shelf.close()
            _emptied(url)
        shelf = open_shelf(url)
        async with embedded() as server:
            await on_a_file.test_rows_as_of_any_position_are_those_a_rebuild_up_to_there_makes(
                server, shelf, monkeypatch
            )
        shelf.close()


def _emptied(url: str) -> None:
    """Some checks count what is on the shelf."""
    shelf = open_shelf(url)
    with shelf._transaction(commit=True) as cursor:
        cursor.execute(b"DELETE FROM phasebus_builds")
    shelf.close()


def test_without_the_driver_it_is_said_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "eventsourcing.postgres", None)
    with pytest.raises(SettingsError, match=r"phasebus\[postgres\]"):
        open_shelf("postgresql://localhost/rows")
