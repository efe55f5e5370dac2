"""What the backends for the CPU must reach: `python -m bench.cpu`, in the root of the checkout; see bench/README.md."""
