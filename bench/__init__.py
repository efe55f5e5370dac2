"""Benchmarks: what each case asks for, how it is timed, and the check that must hold before a result is written."""
