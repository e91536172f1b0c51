"""Benchmarks by their owners' code: each a file with a record (`benchmark`)."""
