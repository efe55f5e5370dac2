"""Training a small video DiT, dense against Mixture of Contexts: `python -m sparsemoc.examples.train_dit`."""
