"""Agents: named sets of capabilities. A handler is an ordinary function, and stays one."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, TypeVar

import msgspec

from bus.cache.cache import Cache
from bus.cache.fingerprint import has_fingerprint
from bus.diagnosis import Classify
from bus.errors import SettingsError
from bus.format import subjects
from bus.format.schemas import anything
from bus.guards.breaker import Breaker
from bus.handlers.context import Context
from bus.handlers.lifespan import Lifespan, Opening, lifespan

Handler = Callable[..., Any]
H = TypeVar("H", bound=Handler)
L = TypeVar("L", bound=Opening)
_LONGEST_S = 10 * 365 * 86_400.0


class Capability(msgspec.Struct, frozen=True, kw_only=True):
    """One thing an agent can do: its handler, the types on both sides, and the bounds on it.

    `timeout_s` bounds an attempt, and `silence_s` how long its handler may say nothing, where the plan does not;
    `concurrency` is how many attempts one instance holds. `isolation="process"`: each attempt has a process of its own,
    which may take `memory_mb` more than it begins with. `classify` is the author's judgement of an exception. With
    `cache` its answer depends on its input alone, so the same input need not be worked on again (`bus.cache.cache`).
    With `breaker`, no work is taken while too many attempts fail, in whatever instance; it has the capability's name.
    By `tags` it can be found (`Client.agents`).
    `on_dead`: what happens to later work when some was given up for good: `skip` goes on with it, `pause` takes nothing
    more until somebody says `phasebus dead release`, and `park` holds what stands in line behind it, until that letter
    is redriven or discarded. `ordered`: it takes work that is sent with a key, one after the other for each key.
    With `broadcast` each instance can be given work of its own (`Client.broadcast`), and with `versioned` each version
    of its agent (`Client.send(..., version=)`).
    """

    name: str
    handler: Handler
    takes: Any
    gives: Any
    timeout_s: float
    concurrency: int
    wants_context: bool
    is_async: bool
    silence_s: float | None = None
    isolation: Literal["process"] | None = None
    memory_mb: int | None = None
    classify: Classify | None = None
    cache: Cache | None = None
    breaker: Breaker | None = None
    tags: tuple[str, ...] = ()
    on_dead: Literal["skip", "pause", "park"] = "skip"
    ordered: bool = False
    broadcast: bool = False
    versioned: bool = False

    def call(self, value: object, context: Context) -> Any:
        """The handler's answer, or for an `async def` what has to be awaited for it."""
        return self.handler(value, context) if self.wants_context else self.handler(value)


def special(capability: Capability, version: str, instance: str) -> list[Capability]:
    """The same, as what exactly this instance does, and exactly this version. Raises InvalidName."""
    names = [subjects.personal(instance, capability.name)] if capability.broadcast else []
    names += [subjects.versioned(version, capability.name)] if capability.versioned else []
    plain = msgspec.structs.replace(
        capability, cache=None, breaker=None, on_dead="skip", ordered=False, broadcast=False, versioned=False
    )
    return [msgspec.structs.replace(plain, name=each) for each in names]


class Subscribed(msgspec.Struct, frozen=True):
    """What an agent hears of topics, under the subscription's name; `capability` is what serves it."""

    name: str
    topics: str
    after: int | Literal["now", "start"]
    capability: str


class Agent:
    """A name, a version, and capabilities added by decorator. Nothing runs before `run` or `phasebus agent run`.

    `classify` says of an exception of a handler which error class it has, or None to leave it to the table
    (`bus.diagnosis`); a capability's own goes before it. The instances of a `standby` agent are given work
    when no other instance asks for it.
    """

    def __init__(
        self,
        name: str,
        *,
        version: str = "1",
        tags: Iterable[str] = (),
        classify: Classify | None = None,
        standby: bool = False,
    ) -> None:
        self.name = subjects.name(name, "agent")
        self.version = version
        self.tags = _tags(tags)
        self.standby = standby
        self.life: Lifespan | None = None
        self._classify = classify
        self._capabilities: dict[str, Capability] = {}
        self.subscriptions: list[Subscribed] = []

    @property
    def capabilities(self) -> Mapping[str, Capability]:
        return self._capabilities

    def capability(
        self,
        name: str,
        *,
        timeout_s: float = 3600.0,
        silence_s: float | None = None,
        concurrency: int = 1,
        isolation: Literal["process"] | None = None,
        memory_mb: int | None = None,
        classify: Classify | None = None,
        cache: Cache | bool = False,
        breaker: Breaker | None = None,
        tags: Iterable[str] = (),
        on_dead: Literal["skip", "pause", "park"] = "skip",
        ordered: bool = False,
        broadcast: bool = False,
        versioned: bool = False,
    ) -> Callable[[H], H]:
        """Register the decorated function as the handler of `name`; what the keywords mean is said at `Capability`.

        Its first parameter is the input, a second one the Context; their annotations say what is decoded and
        validated. An `async def` runs in the event loop, a `def` in a thread, both in a process of their own with
        `isolation="process"`: then the agent must stand at the top level of a module. Raises SettingsError.
        """
        if subjects.is_own(name):
            raise SettingsError(f"capability {name!r}: such names are for @agent.mail() and @agent.subscribe()")
        return self._register(
            name,
            timeout_s=timeout_s,
            silence_s=silence_s,
            concurrency=concurrency,
            isolation=isolation,
            memory_mb=memory_mb,
            classify=classify,
            cache=cache,
            breaker=breaker,
            tags=tags,
            on_dead=on_dead,
            ordered=ordered,
            broadcast=broadcast,
            versioned=versioned,
        )

    def mail(
        self,
        *,
        timeout_s: float = 3600.0,
        silence_s: float | None = None,
        concurrency: int = 1,
        on_dead: Literal["skip", "pause", "park"] = "skip",
        ordered: bool = False,
    ) -> Callable[[H], H]:
        """Register the decorated function as what hears what is told to this agent by its name (`client.tell`).

        It is a handler like any other; one that hears several types says so in its annotation, `Moved | Renamed`.
        """
        return self._register(
            subjects.mailbox(self.name),
            timeout_s=timeout_s,
            silence_s=silence_s,
            concurrency=concurrency,
            on_dead=on_dead,
            ordered=ordered,
        )

    def subscribe(
        self,
        topics: str,
        *,
        name: str,
        after: int | Literal["now", "start"] = "now",
        timeout_s: float = 3600.0,
        silence_s: float | None = None,
        concurrency: int = 1,
    ) -> Callable[[H], H]:
        """Register the decorated function as what hears what is published on `topics` (`client.subscribe` says which).

        Each fact becomes work of this agent, once: with attempts, deadlines, recovery and dead letters as any work.
        `name` is the subscription's own: it goes on where it was, whichever instance serves it. `after` says where it
        begins the first time: a position of the log, its start, or now.
        """
        capability = subjects.subscription(self.name, name)
        subjects.Subjects().topics(topics)
        if isinstance(after, str) and after not in ("now", "start"):
            raise SettingsError(f"subscription {name!r}: after is 'now', 'start' or a position, not {after!r}")
        register: Callable[[H], H] = self._register(
            capability, timeout_s=timeout_s, silence_s=silence_s, concurrency=concurrency
        )

        def subscribed(handler: H) -> H:
            handler = register(handler)
            self.subscriptions.append(Subscribed(name, topics, after, capability))
            return handler

        return subscribed

    def _register(
        self,
        name: str,
        *,
        timeout_s: float,
        silence_s: float | None,
        concurrency: int,
        isolation: Literal["process"] | None = None,
        memory_mb: int | None = None,
        classify: Classify | None = None,
        cache: Cache | bool = False,
        breaker: Breaker | None = None,
        tags: Iterable[str] = (),
        on_dead: Literal["skip", "pause", "park"] = "skip",
        ordered: bool = False,
        broadcast: bool = False,
        versioned: bool = False,
    ) -> Callable[[H], H]:
        subjects.capability(name)
        if name in self._capabilities:
            raise SettingsError(f"agent {self.name!r} has capability {name!r} twice")
        if not 0 < timeout_s <= _LONGEST_S or concurrency < 1:
            raise SettingsError(
                f"capability {name!r}: timeout_s must be over 0, at most 10 years, concurrency 1 or more"
            )
        if silence_s is not None and not 0 < silence_s <= _LONGEST_S:
            raise SettingsError(f"capability {name!r}: silence_s must be over 0, at most 10 years")
        if isolation not in (None, "process"):
            raise SettingsError(f"capability {name!r}: isolation is 'process' or None, not {isolation!r}")
        if memory_mb is not None and (isolation is None or memory_mb < 1):
            raise SettingsError(f"capability {name!r}: memory_mb must be 1 or more, and needs isolation='process'")
        if on_dead not in ("skip", "pause", "park"):
            raise SettingsError(f"capability {name!r}: on_dead is 'skip', 'pause' or 'park', not {on_dead!r}")
        if on_dead == "park" and not ordered:
            raise SettingsError(f"capability {name!r}: on_dead='park' holds a line: it goes with ordered=True")
        if (broadcast or versioned) and isolation is not None:
            raise SettingsError(f"capability {name!r}: broadcast and versioned do not go with isolation='process'")
        kept = Cache() if cache is True else cache or None
        labels = _tags(tags)

        def register(handler: H) -> H:
            takes, gives, wants_context = _signature(name, handler)
            if kept is not None and kept.version is None and not has_fingerprint(handler):
                raise SettingsError(
                    f"capability {name!r}: its handler is an object, or a method of one, and its answers may depend on "
                    "more than its code: give it cache=Cache(version='1'), and another version when that changes"
                )
            self._capabilities[name] = Capability(
                name=name,
                handler=handler,
                takes=takes,
                gives=gives,
                timeout_s=timeout_s,
                concurrency=concurrency,
                wants_context=wants_context,
                is_async=inspect.iscoroutinefunction(handler),
                silence_s=silence_s,
                isolation=isolation,
                memory_mb=memory_mb,
                classify=classify or self._classify,
                cache=kept,
                breaker=breaker,
                tags=labels,
                on_dead=on_dead,
                ordered=ordered,
                broadcast=broadcast,
                versioned=versioned,
            )
            return handler

        return register

    def lifespan(self, *, timeout_s: float = 60.0) -> Callable[[L], L]:
        """Register what is opened before any work is taken, and closed when all is done: the decorated function is
        `async def` without parameters, and yields once; handlers find what it yields in `context.state`.

        Each side of the yield may take `timeout_s`. If the first fails, the process ends and says why. What blocks
        belongs into `asyncio.to_thread`. Raises SettingsError.
        """

        def register(function: L) -> L:
            if self.life is not None:
                raise SettingsError(f"agent {self.name!r} has two lifespans: make them one")
            self.life = lifespan(self.name, function, timeout_s)
            return function

        return register

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, on the bus that `connect` finds; without one the process ends and says so."""
        from bus.worker.worker import run_agent  # noqa: PLC0415 - the worker is made of this module

        run_agent(self)


def _tags(tags: Iterable[str]) -> tuple[str, ...]:
    if isinstance(tags, str):
        raise SettingsError(f"tags are several: write [{tags!r}]")
    return tuple(subjects.name(each, "tag") for each in tags)


def _signature(name: str, handler: Handler) -> tuple[Any, Any, bool]:
    parameters = list(inspect.signature(handler).parameters.values())
    if inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler):
        raise SettingsError(f"the handler of {name!r} yields; it has to return its answer")
    if not 1 <= len(parameters) <= 2 or any(each.kind is each.KEYWORD_ONLY for each in parameters):
        raise SettingsError(f"the handler of {name!r} takes (input) or (input, context), not {len(parameters)} values")
    try:
        hints = typing.get_type_hints(_annotated(handler))
    except Exception as error:  # an annotation is an expression: it may raise anything
        raise SettingsError(f"the handler of {name!r} has an annotation that can't be resolved: {error}") from error
    takes, gives = (_anything(hints.get(side, Any)) for side in (parameters[0].name, "return"))
    for side in (takes, gives):
        try:
            msgspec.json.schema(side, schema_hook=anything)
        except TypeError as error:
            raise SettingsError(f"the handler of {name!r} uses a type that is not JSON: {error}") from error
    return takes, gives, len(parameters) == 2


def _annotated(handler: Handler) -> Any:
    """Where the annotations are: behind a partial, or in the `__call__` of an object."""
    while isinstance(handler, partial):
        handler = handler.func
    return handler if inspect.isroutine(handler) else type(handler).__call__


def _anything(hint: Any) -> Any:
    return Any if hint is object else hint
