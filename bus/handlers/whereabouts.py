"""Where an agent stands, for another process to find it: in which module of which file, under which name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from bus import logs
from bus.errors import SettingsError
from bus.handlers.agent import Agent, Capability
from bus.handlers.frames import Setup


def whereabouts(agent: Agent, isolated: list[Capability]) -> Setup:
    """Where another process finds the agent. Raises SettingsError."""
    homes = [sys.modules[name] for each in isolated if (name := getattr(each.handler, "__module__", "")) in sys.modules]
    for module in [*homes, *list(sys.modules.values())]:
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is agent:
                level, pretty = logs.chosen()
                modules = list(dict.fromkeys(_importable(each) for each in [*homes, module]))
                return Setup(modules, name, [each.name for each in isolated], level, pretty)
    raise SettingsError(
        f"capability {isolated[0].name!r} has isolation='process', but agent {agent.name!r} is no module's: "
        "another process could not import it. Move it to the top level of its file"
    )


def imported(setup: Setup) -> Agent:
    """The agent, in this process. Raises LookupError, and whatever importing it raises."""
    modules = [_module(name, file) for name, file in setup.modules]
    agent = getattr(modules[-1], setup.name, None)
    where = f"{setup.modules[-1][0]}:{setup.name}"
    if isinstance(agent, Agent) and all(name in agent.capabilities for name in setup.capabilities):
        return agent
    missing = ", ".join(setup.capabilities)
    raise LookupError(f"{where} is no agent with {missing} when another process imports it")


def _importable(module: ModuleType) -> tuple[str, str | None]:
    """The module's name in another process, and its file."""
    file = getattr(module, "__file__", None)
    path = str(Path(file).resolve()) if file is not None else None
    if module.__name__ != "__main__":
        return module.__name__, path
    if module.__spec__ is not None:
        return module.__spec__.name, path
    if path is None:
        raise SettingsError(
            "isolation='process' needs an agent in a file: another process can't import what was typed in"
        )
    return Path(path).stem, path


def _module(name: str, file: str | None) -> ModuleType:
    """The module by its name, if that leads to its file; otherwise from the file."""
    found = None
    with suppress(ImportError, ValueError):
        found = importlib.util.find_spec(name)
    if file is None or (found is not None and found.origin is not None and Path(found.origin).resolve() == Path(file)):
        return importlib.import_module(name)
    if name in sys.modules:
        name = f"phasebus_target_{name}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None, "a Python file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
