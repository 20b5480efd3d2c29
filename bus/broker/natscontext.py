"""NATS context files: the logins that the `nats` command line tool keeps, readable by name (ADR-21)."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import msgspec

from bus.errors import SettingsError


class NatsContext(msgspec.Struct, frozen=True):
    """What of a context file this library uses; other members are left alone."""

    url: str = "nats://127.0.0.1:4222"
    user: str = ""
    password: str = ""
    token: str = ""
    creds: str = ""
    nkey: str = ""

    @property
    def login_url(self) -> str:
        """The url with the login in it, unless it has one or the login is a file."""
        login = quote(self.token, safe="") or ":".join(
            quote(part, safe="") for part in (self.user, self.password) if part
        )
        return ",".join(_with_login(url.strip(), login) for url in self.url.split(","))

    @property
    def credentials(self) -> Path | None:
        path = self.creds or self.nkey
        return Path(path).expanduser() if path else None


def read_context(name: str) -> NatsContext:
    """The context called `name`. Raises SettingsError if there is no such file, or it can't be read."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    path = home / "nats" / "context" / f"{name}.json"
    try:
        if "/" in name or not path.is_file():
            raise SettingsError(f"there is no NATS context {name!r}: expected the file {path}")
        return msgspec.json.decode(path.read_bytes(), type=NatsContext)
    except OSError as error:
        raise SettingsError(f"there is no NATS context {name!r}: {error}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SettingsError(f"NATS context {path}: {error}") from error


def _with_login(url: str, login: str) -> str:
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    if not login or "@" in parts.netloc:
        return urlunsplit(parts)
    return urlunsplit(parts._replace(netloc=f"{login}@{parts.netloc}"))
