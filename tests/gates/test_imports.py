"""The import contracts: nothing points back, and the rules know nothing of servers, event loops, clocks and logs."""

from __future__ import annotations

import copy

import grimp
import pytest

# From the author's side down to the bare words. Those in one row know nothing of each other.
LAYERS = [
    {"replay", "schema", "worker"},
    {"archives", "connecting", "handlers"},
    {"client"},
    {"coordination", "letters", "messages"},
    {"runs"},
    {"cache", "eventsourcing", "guards", "history", "registry"},
    {"diagnosis", "log"},
    {"broker", "rules", "settings"},
    {"format"},
    {"address", "errors"},
    {"alarms", "clock", "logs", "problem", "signals"},
]
RULES = [
    "bus.format",
    "bus.rules",
    "bus.archives.retention",
    "bus.cache.cache",
    "bus.cache.fingerprint",
    "bus.coordination.barrier",
    "bus.coordination.decision",
    "bus.coordination.lease",
    "bus.eventsourcing.names",
    "bus.eventsourcing.wire",
    "bus.guards.breaker",
    "bus.guards.purse",
    "bus.guards.quota",
    "bus.guards.window",
    "bus.handlers.llm",
    "bus.history.change",
    "bus.history.diff",
    "bus.history.happening",
    "bus.history.lineage",
    "bus.history.rows",
    "bus.history.selection",
    "bus.history.trail",
    "bus.letters.causes",
    "bus.letters.verdicts",
    "bus.letters.wanted",
    "bus.log.lines",
    "bus.problem",
    "bus.registry.health",
    "bus.registry.orders",
    "bus.registry.versions",
    "bus.replay.alternative",
    "bus.replay.asked",
    "bus.replay.counterfactual",
    "bus.replay.hindsight",
    "bus.replay.plancheck",
    "bus.replay.recorded",
    "bus.replay.rehearsed",
    "bus.runs.causality",
    "bus.runs.lane",
    "bus.runs.schedule",
    "bus.schema.asyncapi",
    "bus.schema.comparison",
    "bus.schema.compatibility",
    "bus.schema.document",
    "bus.schema.shapes",
]
FOLDS = [
    "projections.agents",
    "projections.attention",
    "projections.derived",
    "projections.doctor.attempts",
    "projections.doctor.checks",
    "projections.doctor.crew",
    "projections.doctor.facts",
    "projections.doctor.finding",
    "projections.doctor.ground",
    "projections.doctor.work",
    "projections.breakers",
    "projections.causes",
    "projections.durations",
    "projections.eta",
    "projections.failures",
    "projections.history",
    "projections.letters",
    "projections.locks",
    "projections.progress",
    "projections.projection",
    "projections.runs",
    "projections.why",
    "projections.sketch",
    "projections.spend",
    "projections.traffic",
    "projections.underway",
    "projections.scoring",
]
IMPURE = [
    "nats",
    "asyncio",
    "time",
    "logging",
    "structlog",
    "socket",
    "subprocess",
    "bus.broker.connection",
    "bus.log.log",
    "bus.client",
]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    packages = ("console", "agents", "projections", "bus")
    return grimp.build_graph(*packages, include_external_packages=True, cache_dir=None)


def test_nothing_points_back(graph: grimp.ImportGraph) -> None:
    assert not graph.find_illegal_dependencies_for_layers(("console", "agents", "projections", "bus"))


def test_the_library_is_made_of_layers(graph: grimp.ImportGraph) -> None:
    below = {name for layer in LAYERS for name in layer}
    assert {name.removeprefix("bus.") for name in graph.find_children("bus")} == below | {"__main__"}
    library = copy.deepcopy(graph)
    # `Agent.run()` starts a worker of itself, and loads it only then.
    library.remove_import(importer="bus.handlers.agent", imported="bus.worker.worker")
    layers = [grimp.Layer(*layer) for layer in LAYERS]
    assert not library.find_illegal_dependencies_for_layers(layers, containers={"bus"})


@pytest.mark.parametrize("module", RULES + FOLDS)
def test_the_rules_and_the_folds_are_pure(graph: grimp.ImportGraph, module: str) -> None:
    assert module in graph.modules
    found = [
        graph.find_shortest_chain(module, impure, as_packages=True) for impure in IMPURE if impure in graph.modules
    ]
    assert not [chain for chain in found if chain]


def test_only_the_adapter_and_the_shelf_know_the_library_eventsourcing(graph: grimp.ImportGraph) -> None:
    # Its next major version has other signatures and the same meaning: only these change.
    adapter = {f"bus.eventsourcing.{name}" for name in ("factory", "recorders", "subscription", "translation")}
    shelf = {"projections.shelf", "projections.postgres", "projections.sqlite"}
    assert graph.find_modules_that_directly_import("eventsourcing") == adapter | shelf


def test_nothing_imports_the_persistence_module_unasked(graph: grimp.ImportGraph) -> None:
    package = {"bus.eventsourcing", *graph.find_descendants("bus.eventsourcing")}
    importers = {importer for module in package for importer in graph.find_modules_that_directly_import(module)}
    assert importers <= package
