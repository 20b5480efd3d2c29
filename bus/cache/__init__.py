"""The cache: outputs that are used again, because everything they depend on is the same."""
