"""The page: one HTML file with every picture inside it and the table of all records."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from bench.report import provenance, rows
from bench.report.picture import QUICK, Idea, Picture
from bench.report.results import Results

_HERE = Path(__file__).parent

Drawn = tuple[Picture, bytes]


def html(results: Results, drawn: Sequence[tuple[Idea, Sequence[Drawn]]]) -> str:
    """Return the page of results and of the pictures of each idea; an idea without any says what measures it."""
    problems = (*results.problems, *results.crossover)
    parts = [
        _head(results),
        *(_idea(idea, pictures) for idea, pictures in drawn),
        _table("All records", rows.COLUMNS, [rows.cells(record) for record in problems]) if problems else "",
        _table("Records of <code>bench.cpu</code>", rows.CPU_COLUMNS, [rows.cpu_cells(r) for r in results.cpu])
        if results.cpu
        else "",
        _counts(results),
    ]
    style, script = ((_HERE / name).read_text() for name in ("page.css", "page.js"))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>sparsemoc on {escape(results.device)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + f"\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def pictures_of(text: str) -> list[str]:
    """Return the names of the pictures of a page."""
    return re.findall(r'<figure id="([a-z0-9-]+)">', text)


def _head(results: Results) -> str:
    every = results.all
    facts = (
        ("machine", provenance.machines(every)),
        ("versions", provenance.versions(every)),
        ("commit", provenance.commits(every)),
        ("measured", [provenance.days(every)]),
    )
    rows = "".join(f"<dt>{name}</dt><dd>{'<br>'.join(map(escape, values))}</dd>" for name, values in facts)
    banner = f'<p class="banner">{escape(QUICK)}</p>\n' if results.quick else ""
    return (
        f"{banner}<h1>sparsemoc on {escape(results.device)}</h1>\n<dl>{rows}</dl>\n"
        "<p>Medians with the 20th and 80th percentile. Times are of whole calls, routing included. "
        "Dense attention computes all pairs: how much quality routing keeps is not measured here.</p>"
    )


def _idea(idea: Idea, pictures: Sequence[Drawn]) -> str:
    body = "\n".join(_figure(picture, image) for picture, image in pictures)
    body = body or f'<p class="absent">Not measured. Measure it with <code>{escape(idea.measure)}</code></p>'
    return f"<section>\n<h2>{escape(idea.title)}</h2>\n{body}\n</section>"


def _figure(picture: Picture, image: bytes) -> str:
    data = base64.b64encode(image).decode("ascii")
    asked = "".join(f"<pre><code>{escape(text)}</code></pre>" for text in provenance.commands(picture.records))
    return (
        f'<figure id="{escape(picture.name)}">\n'
        f'<img alt="{escape(picture.title)}" src="data:image/png;base64,{data}">\n'
        f"<figcaption>{escape(picture.how)}{asked}</figcaption>\n</figure>"
    )


def _table(title: str, columns: Sequence[str], cells: Sequence[Sequence[rows.Cell]]) -> str:
    """Return a table; a click on a heading sorts by its column, by the number in data-sort where there is one."""
    heads = "".join(f"<th><button>{escape(name)}</button></th>" for name in columns)
    body = "\n".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in cells)
    return (
        f'<section>\n<h2>{title}</h2>\n<div class="scroll"><table>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>\n</section>"
    )


def _cell(cell: rows.Cell) -> str:
    order = "" if cell.order is None else f' data-sort="{cell.order:.9g}"'
    text = escape(cell.text)
    return f"<td{order}>{f'<code>{text}</code>' if cell.code else text}</td>"


def _counts(results: Results) -> str:
    other = "full" if results.quick else "quick"
    return (
        f"<p>{len(results.all)} records; not shown: {results.replaced} that a newer one of the same measurement "
        f"replaces, {results.other} {other} ones.</p>"
    )
