"""Draw the growth of time with the length: `python -m bench.plot [FILE.jsonl]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import machine

Record = dict[str, Any]

_OURS, _DENSE = "#084081", "#d95f02"


def newest(records: Sequence[Record]) -> list[Record]:
    """Return the last record of growth of each length, by length, of the last backend measured."""
    found = [record for record in records if record["mode"] == "growth" and not record.get("quick")]
    if not found:
        return []
    same = {record["tokens"]: record for record in found if record["backend"] == found[-1]["backend"]}
    return [same[tokens] for tokens in sorted(same)]


def draw(records: Sequence[Record], target: Path) -> None:
    """Draw the time of a call and the time per kept pair against the length."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, (whole, pair) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    tokens = [record["tokens"] for record in records]
    _calls(whole, records, tokens)
    seconds = [[record["seconds"]["ours"][name] for record in records] for name in ("median", "p20", "p80")]
    median, low, high = ([s / r["pairs"] * 1e9 for s, r in zip(row, records, strict=True)] for row in seconds)
    pair.fill_between(tokens, low, high, color=_OURS, alpha=0.2, linewidth=0, label="20th to 80th percentile")
    pair.plot(tokens, median, "o-", color=_OURS, label="median")
    pair.set(title="Time per kept (query, key) pair", ylabel="nanoseconds", ylim=(0, 1.35 * max(high)))
    pair.set_xscale("log", base=2)
    pair.legend(frameon=False)
    for axes in (whole, pair):
        axes.set_xlabel("tokens")
        axes.set_xticks(tokens, [f"{n / 1000:.0f}k" for n in tokens])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(_where(records[-1]), fontsize=9, color="#555555")
    figure.savefig(target, dpi=150)
    plt.close(figure)


def _calls(axes: Any, records: Sequence[Record], tokens: list[int]) -> None:
    """Draw seconds of a call: ours, dense where measured, dense extrapolated where not."""
    axes.plot(
        tokens, [r["seconds"]["ours"]["median"] for r in records], "o-", color=_OURS, label="sparsemoc, with routing"
    )
    known = [(r["tokens"], r["dense"]) for r in records if r["dense"] is not None]
    measured = [(n, d["seconds"]) for n, d in known if d["extrapolated_from"] is None]
    beyond = [(n, d["seconds"]) for n, d in known if d["extrapolated_from"] is not None]
    if measured:
        axes.plot(*zip(*measured, strict=True), "s-", color=_DENSE, label="torch SDPA (dense), measured")
    if beyond:
        line = [*measured[-1:], *beyond]
        axes.plot(
            *zip(*line, strict=True),
            ":",
            color=_DENSE,
            label="dense, extrapolated (not measured): grows with the square",
        )
    axes.set(title="Time of one call", ylabel="seconds", yscale="log")
    axes.set_xscale("log", base=2)
    axes.legend(frameon=False, fontsize=9)


def _where(record: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if version)
    segments = [segment["tokens"] for segment in record["spec"]["stream"]["segments"] if segment["kind"] != "text"]
    head, _, dirty = (record["commit"] or "no commit").partition("-")
    return (
        f"{record['heads']} heads of {record['head_dim']}, {record['dtype']}, shots of up to {max(segments):,} tokens, "
        f"chunks of {record['spec']['chunks']['size']}, top {record['spec']['top_k']}, backend {record['backend']}\n"
        f"{record['cpu']}, {record['threads']} threads; {versions}; {head[:10]} {dirty}".rstrip()
        + f", {record['time'][:10]}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Read JSON lines and write growth.png beside them."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.plot", description="Draw the growth of time with the length."
    )
    parser.add_argument("file", nargs="?", type=Path, help="JSON lines (default: the newest of this machine)")
    path = parser.parse_args(arguments).file
    if path is None:
        found = sorted((machine.ROOT / "bench" / "results" / machine.slug()).glob("*.jsonl"))
        if not found:
            parser.error("there are no results of this machine. Hint: python -m bench.run --case long")
        path = found[-1]
    records = newest([json.loads(line) for line in path.read_text().splitlines()])
    if not records:
        parser.error(f"{path} holds no record of growth. Hint: python -m bench.run --case long")
    target = path.with_name("growth.png")
    draw(records, target)
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
