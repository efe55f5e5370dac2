"""Draw the pictures of the records, write the page, and README's part: `python -m bench.report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import machine
from bench.report import page, readme
from bench.report.figures import IDEAS
from bench.report.looks import Looks
from bench.report.picture import Idea, Picture, png
from bench.report.records import read
from bench.report.results import Results, choose
from sparsemoc.spec.errors import SparsemocError, SpecError

#: The folders of records of a machine, within its own.
FOLDERS = (".", "problems", "crossover")

Drawn = list[tuple[Idea, list[tuple[Picture, bytes]]]]


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(prog="python -m bench.report", description="Draw and tell what was measured.")
    made.add_argument("files", nargs="*", type=Path, metavar="FILE", help="JSON lines, or the folder of a machine "
                      "(default: bench/results/<this machine>)")  # fmt: skip
    made.add_argument("--out", type=Path, metavar="DIR", help="folder of index.html and the pictures "
                      "(default: report/ in the machine's folder)")  # fmt: skip
    made.add_argument("--readme", action="store_true", help="write README's measured part and its pictures too")
    made.add_argument("--quick", action="store_true", help="show records of tiny sizes, whose figures mean nothing")
    made.add_argument("--device", metavar="NAME", help="show records of this device alone")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report and say where; return 2 if it cannot be made."""
    asked = parser().parse_args(arguments)
    own = machine.ROOT / "bench" / "results" / machine.slug()
    try:
        files = found(asked.files or [own])
        results = choose(list(read(files)), quick=asked.quick, on=asked.device)
        drawn = draw(results)
        for path in write(results, drawn, asked.out or _default_out(files[0])):
            print(path)
        if asked.readme:
            shown = [picture for idea, pictures in drawn if idea.in_readme for picture in pictures]
            for path in readme.rewrite(machine.ROOT / "README.md", results, shown):
                print(path)
    except SparsemocError as error:
        print(error, file=sys.stderr)
        return 2
    for idea, pictures in drawn:
        if not pictures:
            print(f"not measured: {idea.title}. Measure it with: {idea.measure}")
    return 0


def found(paths: Sequence[Path]) -> list[Path]:
    """Return files as they are, and of a machine's folder the files of its records.

    Raises:
        SpecError: a folder holds none.
    """
    files = []
    for path in paths:
        inside = (
            [file for folder in FOLDERS for file in sorted((path / folder).glob("*.jsonl"))]
            if path.is_dir()
            else [path]
        )
        if not inside or not inside[0].exists():
            raise SpecError(f"bench.report: there are no records at {path}. Hint: python -m bench.run")
        files += inside
    return files


def draw(results: Results) -> Drawn:
    """Return the pictures of each idea, none where what they show was not measured."""
    looks = Looks(results.all)
    return [
        (idea, [(picture, png(picture, results.quick)) for picture in idea.pictures(results, looks)]) for idea in IDEAS
    ]


def write(results: Results, drawn: Drawn, folder: Path) -> list[Path]:
    """Write the page and the pictures, remove those of the page that was there before, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    page_file = folder / "index.html"
    for name in page.pictures_of(page_file.read_text(encoding="utf-8")) if page_file.exists() else []:
        (folder / f"{name}.png").unlink(missing_ok=True)
    page_file.write_text(page.html(results, drawn), encoding="utf-8")
    files = {folder / f"{picture.name}.png": image for _, pictures in drawn for picture, image in pictures}
    for path, image in files.items():
        path.write_bytes(image)
    return [page_file, *files]


def _default_out(file: Path) -> Path:
    """Return the folder of the report of the machine that a file of records belongs to."""
    return (file.parent.parent if file.parent.name in FOLDERS else file.parent) / "report"


if __name__ == "__main__":
    sys.exit(main())
