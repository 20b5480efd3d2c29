"""Coordination among processes: leases with tokens that the log checks, barriers, elections, decisions by vote."""
