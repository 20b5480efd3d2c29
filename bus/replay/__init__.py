"""Replay: what the log has, seen again. Event by event, beside another run, by another plan, by the code of today."""
