"""Handlers: the author's functions under way. What they are told, what they may say, and where they run."""
