"""Mixture of Contexts as an attention implementation of Hugging Face transformers."""
