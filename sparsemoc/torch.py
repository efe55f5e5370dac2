"""Modules and functions for PyTorch models."""
