"""Try an installed wheel: `nox -s build` runs this in a clean environment, from another folder."""

import importlib.metadata
from pathlib import Path

import numpy as np

import sparsemoc as moc

TOKENS, HEADS, HEAD_DIM = 96, 2, 16


def main() -> None:
    """Run attention on small arrays on both CPU backends and compare them."""
    checkout = Path(__file__).resolve().parent.parent
    if checkout in Path(moc.__file__).resolve().parents:
        raise SystemExit(f"imported {moc.__file__} from the checkout, not the installed wheel")
    if moc.__version__ != importlib.metadata.version("sparsemoc"):
        raise SystemExit(f"the package says {moc.__version__}, its metadata another version")
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 1, TOKENS, HEADS, HEAD_DIM), dtype=np.float32)
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=16), top_k=2)
    reference = moc.attention(q, k, v, spec, backend="reference")
    numba = moc.attention(q, k, v, spec, backend="numba")
    np.testing.assert_allclose(numba, reference, rtol=1e-5, atol=1e-5)
    print(f"sparsemoc {moc.__version__} at {Path(moc.__file__).parent}: reference and numba agree")


if __name__ == "__main__":
    main()
