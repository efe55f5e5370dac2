"""Mixture of Contexts in the video transformers of diffusers: `enable`."""
