"""Compile ahead: our calls of every section once, several at a time, so that no section spends its time on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import sparsemoc as moc
from bench.gpu import counts, figures, parts, settings
from bench.gpu.clock import Call, usable
from bench.gpu.report import Report

#: Settings by the sections that measure them; a number is that of the tokens of routes alone.
NEEDED = {
    "flashmoba": ("flashmoba",), "paper": ("paper",), "wan": ("wan",), "short": ("short",), "anchors": ("shots",),
    "stages": ("paper", "flashmoba"),
}  # fmt: skip


def names(sections: Sequence[str], quick: bool) -> list[str]:
    """Return what there is to compile for sections; a process does one of them."""
    needed = dict.fromkeys(name for section in sections for name in NEEDED.get(section, ()))
    tokens = parts.QUICK_TOKENS if quick else parts.TOKENS
    return [*needed, *map(str, tokens if "routed" in sections else ())]


def prepare(report: Report, name: str) -> None:
    """Call what the sections will call; compiled kernels stay on disk, in caches. What fails is told there."""
    usable(report, name, dict(_calls(report, name)), peers=True)


def _calls(report: Report, name: str) -> Iterator[tuple[str, Call]]:
    setup = report.setup
    if name in settings.NAMES:
        setting = settings.setting(name, setup)
        x = settings.arrays(setting, setup)
        yield from figures.ours(setting, x, "forward").items()
        if name != "wan":
            yield "gradients", figures.gradients(setting, x, "auto")
            yield "deterministic", figures.gradients(setting, x, "own", deterministic=True)
        return
    if name == "shots":
        setting = settings.shots(setup)
        x = settings.arrays(setting, setup)
        layout = moc.route(x.q, x.k, setting.spec, backend=setting.backend)
    else:
        # Chunks of another length have the same kernels; where short ones stay there is one more, for its section.
        setting = next(one for one in parts.routed_settings(setup) if one.tokens == int(name))
        x = settings.arrays(setting, setup)
        layout = counts.random_layout(setting, setup)
    yield "forward", parts.attend(setting, x, layout)
    yield "backward", parts.backward(setting, x, layout)
