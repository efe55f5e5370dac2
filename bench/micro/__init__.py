"""Micro-benchmarks: every step of every backend by itself, by pytest-benchmark. See README.md."""
