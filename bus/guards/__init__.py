"""Guards of services outside that may be sick, slow or dear: breakers, limits, budgets, fallbacks.

All agents share them.
"""
