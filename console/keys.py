"""Keys: what is pressed on a terminal, one at a time and not echoed, while the block runs; then it is as it was."""

from __future__ import annotations

import asyncio
import codecs
import os
import re
import termios
import tty
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TextIO

_READ_BYTES = 1024
# An arrow or another key that a terminal sends as several characters; anything else is a key by itself.
_KEY = re.compile(r"\x1b(?:\[[0-9;]*[A-Za-z~]|O[A-Za-z])|.", re.DOTALL)
_LEAVING = {"\x03": KeyboardInterrupt, "\x04": EOFError}


class Keys:
    """Made by `pressed`."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[str] = asyncio.Queue()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    async def next(self) -> str:
        """The next key, as the terminal sends it. Raises KeyboardInterrupt for Ctrl-C, EOFError for Ctrl-D."""
        key = await self._waiting.get()
        if key in _LEAVING:
            raise _LEAVING[key]
        return key

    def feed(self, fd: int) -> None:
        """Take what has come, however many keys it is: nothing typed ahead is lost."""
        try:
            read = os.read(fd, _READ_BYTES)
        except OSError:
            read = b""
        # A terminal that was closed is one that somebody has left.
        typed = self._decoder.decode(read) if read else "\x04"
        for key in _KEY.findall(typed):
            self._waiting.put_nowait(key)
        if not read:
            asyncio.get_running_loop().remove_reader(fd)


@asynccontextmanager
async def pressed(stream: TextIO) -> AsyncIterator[Keys]:
    """The keys of the terminal that `stream` reads from."""
    fd, loop, keys = stream.fileno(), asyncio.get_running_loop(), Keys()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd, termios.TCSADRAIN)
    mode = termios.tcgetattr(fd)
    # Ctrl-C is a key like any other: who presses it wants to leave, and has interrupted nothing.
    mode[3] &= ~termios.ISIG
    termios.tcsetattr(fd, termios.TCSADRAIN, mode)
    loop.add_reader(fd, keys.feed, fd)
    try:
        yield keys
    finally:
        loop.remove_reader(fd)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
