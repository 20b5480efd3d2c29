"""The rules of a run: what may happen to it, and what follows. Pure: no server, no event loop, no clock, no logging."""
