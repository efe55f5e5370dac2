"""What only a GPU can tell: `python -m bench.gpu --out DIR`, from the root of the checkout. See bench/README.md."""
