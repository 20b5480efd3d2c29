"""The log: one ordered stream that everything is in, what its records look like, and the buckets beside it."""
