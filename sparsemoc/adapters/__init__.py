"""Adapters: what users plug into models of other libraries."""
