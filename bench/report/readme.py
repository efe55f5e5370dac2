"""README's measured part: tables and pictures between two marker comments, all of it from records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.report import provenance, wording
from bench.report.figures.growth import lengths
from bench.report.picture import Picture
from bench.report.records import Record, median
from bench.report.results import Results, Setting, settings
from sparsemoc.spec.errors import SpecError

#: Where README's pictures lie, from its folder.
FOLDER = "docs/bench"
_MODES = ("forward", "forward+backward")
_CASES = {"forward": "forward with routing", "gradients": "forward + backward"}


def machine(results: Results) -> str:
    """Return the machine as README's markers and the names of its pictures have it."""
    return wording.slug(results.device)


def rewrite(readme: Path, results: Results, pictures: Sequence[tuple[Picture, bytes]]) -> list[Path]:
    """Write the part of a machine and its pictures; return the files that were written.

    The markers are `<!-- bench:begin -->` and `<!-- bench:end -->`; where README shows several machines, each has a
    pair of its own that names it, `<!-- bench:begin amd-epyc -->`, which is preferred.

    Raises:
        SpecError: a marker is absent or there is more than one of it, or the records are quick ones.
    """
    if results.quick:
        raise SpecError(
            "bench.report: --readme must be given full records, got quick ones, whose figures mean nothing."
        )
    text = readme.read_text(encoding="utf-8")
    begin, end = _markers(text, readme, machine(results))
    folder = readme.parent / FOLDER
    files = {folder / f"{machine(results)}-{picture.name}.png": image for picture, image in pictures}
    lines = "\n\n".join(_parts(results, [picture for picture, _ in pictures]))
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    folder.mkdir(parents=True, exist_ok=True)
    for path, image in files.items():
        path.write_bytes(image)
    readme.write_text(f"{before}{begin}\n\n{lines}\n\n{end}{after}", encoding="utf-8")
    return [readme, *files]


def _markers(text: str, readme: Path, name: str) -> tuple[str, str]:
    named = f"<!-- bench:begin {name} -->" in text
    begin, end = (f"<!-- bench:{part}{f' {name}' if named else ''} -->" for part in ("begin", "end"))
    counts = text.count(begin), text.count(end)
    if counts != (1, 1) or text.index(begin) > text.index(end):
        raise SpecError(
            f"bench.report: {readme} must hold the lines {begin} and {end}, once and in this order, got "
            f"{counts[0]} and {counts[1]} of them. Hint: put them where the measured "
            "figures go; what is between them is written anew."
        )
    return begin, end


def _parts(results: Results, pictures: Iterable[Picture]) -> list[str]:
    rows = [row for setting in _asked(results) if (row := _row(setting)) is not None]
    parts = [_table(_HEAD, rows)] if rows else []
    cases = [r for r in results.cpu if r["mode"] in _CASES and "ours" in r["seconds"] and "dense" in r["seconds"]]
    parts += [_table(_CASE_HEAD, [_case(record) for record in cases])] if cases else []
    parts += _growth(results)
    for picture in pictures:
        parts.append(f"![{picture.title}: {picture.subtitle}]({FOLDER}/{machine(results)}-{picture.name}.png)")
    return [*parts, _where(results)]


_HEAD = ("problem", "tokens", "measured", "dtype", "", "sparsemoc", "fastest dense", "speed-up", "ideal", "share",
         "routing", "useful TFLOP/s")  # fmt: skip
_CASE_HEAD = ("case", "", "sparsemoc", "dense", "pair ratio", "share", "goal", "routing")


def _asked(results: Results) -> list[Setting]:
    found = [setting for setting in settings(results.problems) if setting.mode in _MODES]
    return sorted(found, key=lambda s: (s.records[0]["tokens"], s.problem, s.dtype, _MODES.index(s.mode)))


def _row(setting: Setting) -> list[str] | None:
    """Return the row of the fastest backend, None where none has a time."""
    ours = setting.ours
    if ours is None:
        return None
    dense = ours["dense"]
    peer = None if dense is None else next((r for r in setting.records if r["contender"] == dense["contender"]), None)
    compared = ["-"] * 3 if dense is None else [
        "-" if peer is None else f"{wording.seconds(median(peer))} ({dense['contender']})",
        "{} ({} to {})".format(*(wording.times(dense["speedup"][name]) for name in ("median", "p20", "p80"))),
        wording.percent(dense["share"]),
    ]  # fmt: skip
    return [
        f"`{setting.problem}`", f"{ours['tokens']:,}", wording.heads(ours), setting.dtype, setting.mode,
        f"{wording.seconds(median(ours))} ({ours['contender']})", compared[0], compared[1],
        wording.times(ours["pair_ratio"]), compared[2],
        "" if ours["routing"] is None else wording.percent(ours["routing"]["share"]),
        "-" if ours["tflops"] is None else wording.digits(ours["tflops"]),
    ]  # fmt: skip


def _case(record: Record) -> list[str]:
    checks = {check["what"]: check for check in record["checks"]}
    share, routing = checks.get("share"), checks.get("routing")
    return [
        f"`{record['case']}`", _CASES[record["mode"]], wording.seconds(record["seconds"]["ours"]["median"]),
        wording.seconds(record["seconds"]["dense"]["median"]), f"{record['pair_ratio']:.2f}",
        "" if share is None else f"{share['value']:.2f}",
        "" if share is None or share["required"] is None else f"{share['required']:.2f}",
        "" if routing is None else wording.percent(routing["value"]),
    ]  # fmt: skip


def _growth(results: Results) -> list[str]:
    records = lengths(results)
    memory = [record for record in results.cpu if record["mode"] == "memory"]
    parts = []
    if len(records) > 1:
        last, check = records[-1], _goal(records[-1], "growth")
        parts.append(
            f"Growth, {last['heads']} heads of {last['head_dim']}: {last['tokens']:,} tokens take "
            f"{wording.seconds(last['seconds']['ours']['median'])}, {check} times as long for each kept pair as "
            "at 16,384."
        )
    if memory:
        parts.append(
            f"Peak memory of a process that makes one call of {memory[-1]['tokens']:,} tokens: "
            f"{_goal(memory[-1], 'memory')} times the bytes of q, k, v and out."
        )
    return [" ".join(parts)] if parts else []


def _goal(record: Record, what: str) -> str:
    check = next(check for check in record["checks"] if check["what"] == what)
    goal = "" if check["required"] is None else f" (goal {check['required']:g})"
    return f"{check['value']:.2f}{goal}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _where(results: Results) -> str:
    every = results.all
    commands = ", ".join(f"`{text}`" for text in provenance.commands(every))
    return (
        f"Medians, with the 20th to 80th percentile in brackets. {'; '.join(provenance.machines(every))}; "
        f"{' / '.join(provenance.versions(every))}; commit {', '.join(provenance.commits(every))}; "
        f"{provenance.days(every)}. {commands}; this part: `python -m bench.report --readme`."
    )
