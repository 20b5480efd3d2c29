"""What is true now: read models folded from the log."""
