"""The pictures of a report, one idea to a module, in the order of the page."""

from __future__ import annotations

from bench.report.figures import contenders, crossover, growth, memory, rate, routing, speedup, time

IDEAS = tuple(module.IDEA for module in (speedup, time, growth, crossover, contenders, rate, routing, memory))
