"""History: what happened, event by event. What is picked from the log, what each event changed, and what came of it."""
