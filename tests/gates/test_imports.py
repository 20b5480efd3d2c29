"""The import contracts: nothing points back, and the rules know nothing of servers, event loops, clocks and logs."""

from __future__ import annotations

import grimp
import pytest

RULES = [
    "bus.alternative",
    "bus.asyncapi",
    "bus.cache",
    "bus.change",
    "bus.barrier",
    "bus.breaker",
    "bus.causes",
    "bus.causality",
    "bus.commands",
    "bus.conditions",
    "bus.comparison",
    "bus.compatibility",
    "bus.dead",
    "bus.counterfactual",
    "bus.decide",
    "bus.decision",
    "bus.diff",
    "bus.document",
    "bus.draft",
    "bus.effects",
    "bus.envelope",
    "bus.events",
    "bus.eventsourcing.names",
    "bus.eventsourcing.wire",
    "bus.fingerprint",
    "bus.folding",
    "bus.gates",
    "bus.happening",
    "bus.health",
    "bus.hindsight",
    "bus.holding",
    "bus.inputs",
    "bus.lane",
    "bus.lease",
    "bus.lineage",
    "bus.lines",
    "bus.llm",
    "bus.messages",
    "bus.passes",
    "bus.orders",
    "bus.payload",
    "bus.plan",
    "bus.plancheck",
    "bus.problem",
    "bus.purse",
    "bus.quota",
    "bus.recorded",
    "bus.references",
    "bus.retention",
    "bus.retry",
    "bus.revival",
    "bus.run",
    "bus.schedule",
    "bus.schemas",
    "bus.shapes",
    "bus.selection",
    "bus.subjects",
    "bus.timers",
    "bus.trail",
    "bus.verdicts",
    "bus.undoing",
    "bus.verify",
    "bus.window",
    "bus.versions",
    "bus.wanted",
]
FOLDS = [
    "projections.agents",
    "projections.attention",
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
    "bus.connection",
    "bus.log",
    "bus.client",
]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    packages = ("console", "agents", "projections", "bus")
    return grimp.build_graph(*packages, include_external_packages=True, cache_dir=None)


def test_nothing_points_back(graph: grimp.ImportGraph) -> None:
    assert not graph.find_illegal_dependencies_for_layers(("console", "agents", "projections", "bus"))


@pytest.mark.parametrize("module", RULES + FOLDS)
def test_the_rules_and_the_folds_are_pure(graph: grimp.ImportGraph, module: str) -> None:
    assert module in graph.modules
    reached = {impure: graph.find_shortest_chain(module, impure) for impure in IMPURE if impure in graph.modules}
    assert not {impure: chain for impure, chain in reached.items() if chain}


def test_only_the_adapter_and_the_shelf_know_the_library_eventsourcing(graph: grimp.ImportGraph) -> None:
    # Its next major version has other signatures and the same meaning: only these change.
    adapter = {f"bus.eventsourcing.{name}" for name in ("factory", "recorders", "subscription", "translation")}
    shelf = {"projections.shelf", "projections.postgres"}
    assert graph.find_modules_that_directly_import("eventsourcing") == adapter | shelf


def test_nothing_imports_the_persistence_module_unasked(graph: grimp.ImportGraph) -> None:
    package = {"bus.eventsourcing", *graph.find_descendants("bus.eventsourcing")}
    importers = {importer for module in package for importer in graph.find_modules_that_directly_import(module)}
    assert importers <= package
