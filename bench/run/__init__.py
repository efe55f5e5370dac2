"""Backends and peers on named problems: `python -m bench.run`, from the root of the checkout. See bench/README.md."""
