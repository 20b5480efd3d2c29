"""Runs on the log: commands become commits at the version that was seen. Schedules start runs, steering changes one."""
