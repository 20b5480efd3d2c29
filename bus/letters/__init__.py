"""Dead letters: work that was given up, kept whole, grouped by cause, and sent again on somebody's terms."""
