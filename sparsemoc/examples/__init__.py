"""Worked examples, each a module to run."""
