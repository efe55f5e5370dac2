"""Mixture of Contexts in the video diffusion transformers of diffusers."""
