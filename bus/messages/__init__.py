"""Messages between agents: asked, handed over, streamed, published; and what was caused by what."""
