"""Pictures, a page and README's figures from the records of the benchmarks: `python -m bench.report`."""
