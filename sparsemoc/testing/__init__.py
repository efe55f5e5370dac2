"""What a third-party backend is tested with: the oracle, the strategies, the tolerances and the conformance suite.

`conformance.run(backend)` is the whole suite. Hypothesis is imported by `strategies` and `conformance`
only; the oracle needs NumPy alone.
"""
