"""Tuning: which config a backend runs a problem with, measured only when asked for, kept, shared and shipped."""
