"""A backend's configs against each other: `python -m bench.run --sweep`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from bench import measure
from bench.cases import Case
from bench.timing import Times, interleaved
from sparsemoc.backends import get_backend


def configs(case: Case, setting: measure.Setting) -> Iterator[measure.Record]:
    """Time the forward with every config of the backend's search space, and yield a record for each, fastest first.

    All configs share the rounds; a figure is the time in units of that of the default, the first of the space.
    """
    case = case.at(case.tokens)
    ready = measure.checked(case, setting, rows=2)
    problem = measure.problem_of(case, ready.layout, "sweep")
    settings = [
        dataclasses.replace(setting, config=config) for config in get_backend(setting.backend).search_space(problem)
    ]
    checked = [measure.checked(case, one, rows=measure.LONG_ROWS) for one in settings]
    calls = {str(i): measure.attention(case, ready.inputs, one) for i, one in enumerate(settings)}
    times = interleaved(calls, setting.rounds)
    for name in sorted(calls, key=lambda name: times.summary(name).median):
        own, index = Times({"ours": times.seconds[name]}), int(name)
        found = measure.record("sweep", checked[index], settings[index], own, ready.layout.flops(case.head_dim))
        figure = measure.check(_shown(settings[index].config), times.ratio(name, "0").median)
        yield found | {"checks": [figure]}


def _shown(config: object) -> str:
    """Return the fields of a config that differ from the defaults of its class."""
    if not dataclasses.is_dataclass(config):
        return str(config)
    changed = [
        f"{field.name}={getattr(config, field.name)}"
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default
    ]
    return ", ".join(changed) or "default"
