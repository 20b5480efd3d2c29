"""The same work by other libraries on the same server: `python -m benchmarks.peers`."""
