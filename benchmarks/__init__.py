"""Benchmarks: `python -m benchmarks.NAME [--quick] [--json FILE]`; the JSON has `rows` and `goals`."""
