from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the pictures are drawn with matplotlib")

from PIL import Image  # matplotlib brings Pillow

from sparsemoc.spec.errors import SpecError
from tests.bench.report_records import (
    CONTENDERS,
    MACHINE,
    Record,
    cpu,
    everything,
    grid,
    growth,
    record,
    times,
    without_time,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """bench is no part of the package: it is imported from the root of the checkout."""
    monkeypatch.syspath_prepend(ROOT)


def write(path: Path, records: Iterable[Record]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def report(*arguments: object) -> int:
    return int(import_module("bench.report.__main__").main([str(argument) for argument in arguments]))


def choose(*records: Record, **asked: Any) -> Any:
    return import_module("bench.report.results").choose(records, **asked)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of everything, in a machine's folder, made once."""
    made = tmp_path_factory.mktemp("machine")
    (made / "problems").mkdir()
    (made / "crossover").mkdir()
    write(
        made / "problems" / "a.jsonl", [r for r in everything() if r.get("schema") and "crossover" not in r["problem"]]
    )
    write(made / "crossover" / "a.jsonl", grid())
    write(made / "a.jsonl", growth())
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        assert report(made) == 0
    return made / "report"


@pytest.mark.parametrize(
    "name",
    [
        "speedup-numba-float32",
        "time-grid-forward-float32-d64",
        "time-problems-forward-and-backward-float32",
        "growth",
        "crossover-numba-forward-float32-d64",
        "contenders-forward-float32",
        "rate-forward-float32",
        "routing-numba-float32",
        "routing-by-chunks-float32",
        "memory",
    ],
)
def test_each_picture_is_drawn_with_its_small_print(folder: Path, name: str) -> None:
    path = folder / f"{name}.png"
    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert("L"), np.float64)
    height, width = pixels.shape
    assert width == 1200
    assert 300 < height < 1100
    title, body, foot = pixels[:70], pixels[height // 3 : height // 2], pixels[-60:]
    assert all(part.std() > 3 for part in (title, body, foot))  # ink in each
    assert pixels[:, :6].min() == 255  # nothing is cut off at the edges
    assert pixels[:, -6:].min() == 255
    assert base64.b64encode(path.read_bytes()).decode() in (folder / "index.html").read_text()


def test_head_dims_have_maps_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    (tmp_path / "crossover").mkdir()
    wide = [one | {"head_dim": 128, "v_head_dim": 128, "time": "2031-02-02T03:04:05+00:00"} for one in grid()]
    write(tmp_path / "crossover" / "a.jsonl", [*grid(), *wide])
    assert report(tmp_path) == 0
    names = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert {f"crossover-numba-forward-float32-d{width}.png" for width in (64, 128)} <= names
    assert {f"time-grid-forward-float32-d{width}.png" for width in (64, 128)} <= names


def test_the_page_tells_commands_reasons_and_how_to_read(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    assert "<code>python -m bench.run --problem all</code>" in page
    assert "<code>python -m bench.cpu --case long</code>" in page
    assert "skipped: takes 9 h" in page
    assert "extrapolated, not measured" in page
    assert "quick" not in page.partition("<h1>")[0].partition("<body>")[2]
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert page.count("<figcaption>") == page.count("<img") == len(list(folder.glob("*.png")))


def test_a_row_holds_the_figures_of_its_record(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    row = next(r for r in page.split("<tr>") if "large/hd" in r and ">numba<" in r and ">forward<" in r)
    # 4 heads x 75,600 queries x 14,400 keys x 4 x 128 operations at 1e11 a second, of the made-up machine.
    told = ("22.3 s", "20.1 s to 26.8 s", "5.2x", "4.0x (3.8x to 4.2x) over torch sdpa flash", "4.0 %")
    sizes = ("75,600", "4 of 40 heads", "19 %", "0.10", "50 % (compute)", "151 MB", "1.0e-06 (out)", "forward: cache")
    for text in (*told, *sizes):
        assert f">{text}<" in row, text


def test_what_was_not_measured_says_which_command_measures_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "few.jsonl", [record(dense=None, memory=None, routing=None, tflops=None)])
    assert report(file) == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert list((tmp_path / "report").glob("*.png")) == []
    for command in ("python -m bench.run", "python -m bench.cpu --case long", "python -m bench.crossover"):
        assert f"Not measured. Measure it with <code>{command}</code>" in page
    assert (
        "not measured: Near-linear growth with the length. Measure it with: python -m bench.cpu"
        in capsys.readouterr().out
    )


def test_pictures_of_an_older_page_go_and_other_files_stay(tmp_path: Path) -> None:
    file = write(tmp_path / "few.jsonl", [record()])
    assert report(file, "--out", tmp_path) == 0
    assert (tmp_path / "memory.png").exists()
    (tmp_path / "mine.png").write_bytes(b"kept")
    write(file, [record(memory=None)])
    assert report(file, "--out", tmp_path) == 0
    assert not (tmp_path / "memory.png").exists()
    assert (tmp_path / "mine.png").read_bytes() == b"kept"


def test_text_of_records_is_escaped(tmp_path: Path) -> None:
    hostile = "</td><script>alert(1)</script>&'\""
    lines = [
        record(hostile, command=hostile),
        without_time(f"refused: {hostile}", contender="torch flex", note=hostile),
    ]
    assert report(write(tmp_path / "x.jsonl", lines)) == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert page.count("<script>") == 1


def test_the_newest_record_of_a_measurement_wins() -> None:
    old, new = (record(time=f"2031-01-0{day}T00:00:00+00:00", rounds=day) for day in (1, 2))
    others = [record(mode="route"), record(contender="torch flex"), record(heads=6), record(dtype="float16")]
    results = choose(new, *others, old)
    assert [r["rounds"] for r in results.problems if r not in others] == [2]
    assert len(results.problems) == 5
    assert results.replaced == 1


def test_a_record_that_was_skipped_replaces_none_that_was_measured_and_a_wrong_one_does() -> None:
    late: Record = {"time": "2032-01-01T00:00:00+00:00"}
    kept = choose(record(), without_time("skipped: no time left", **late)).problems
    assert [r["reason"] for r in kept] == [None]
    assert [r["reason"] for r in choose(record(), without_time("wrong: out", **late)).problems] == ["wrong: out"]


def test_the_heads_measured_last_are_compared() -> None:
    settings = import_module("bench.report.results").settings
    late: Record = {"time": "2032-01-01T00:00:00+00:00", "heads": 2}
    few, many = (
        [record(**late), record(contender="torch flex", **late)],
        [record(), record(contender="torch sdpa flash")],
    )
    (found,) = settings([*many, *few])
    assert {r["heads"] for r in found.records} == {2}
    assert found.ours == few[0]


def test_quick_and_full_records_are_never_shown_together(tmp_path: Path) -> None:
    full, quick = record("full/one"), record("quick/one", quick=True)
    assert [r["problem"] for r in choose(full, quick).all] == ["full/one"]
    assert [r["problem"] for r in choose(full, quick, quick=True).all] == ["quick/one"]
    assert choose(quick).quick
    file = write(tmp_path / "x.jsonl", [full, quick])
    assert report(file, "--quick") == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert '<p class="banner">quick: sizes too small to mean anything</p>' in page
    assert "full/one" not in page
    with pytest.raises(SpecError, match=r"there are no quick records. Hint: python -m bench.run --quick"):
        choose(full, quick=True)


def test_records_of_two_devices_are_not_mixed() -> None:
    other = record(machine=MACHINE | {"device": "Other"})
    with pytest.raises(
        SpecError, match=r"must be of one device, got those of Fake CPU, Other. Hint: --device 'Fake CPU'"
    ):
        choose(record(), other)
    assert choose(record(), other, on="Other").problems == (other,)
    with pytest.raises(SpecError, match=r"--device must be one of Fake CPU, got 'no'"):
        choose(record(), on="no")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            '{"schema": 2, ',
            "line 2 must be a JSON record, but .* Hint: a run that was ended may leave half a last line",
        ),
        ("[1]", r"line 2 must be a JSON object, got \[1\]"),
        ('{"schema": 3}', "line 2 must be of schema 2, got 3"),
        ('{"schema": 2}', "line 2 must have the fields command, time, .* which are absent or null"),
        ('{"mode": "growth"}', "line 2 must have the fields case, tokens"),
        (json.dumps(record(seconds=None)), "line 2 must have a time or a reason why there is none"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, text: str) -> None:
    file = tmp_path / "broken.jsonl"
    file.write_text(json.dumps(record()) + "\n" + line + "\n")
    assert report(file) == 2
    assert re.search(f"bench.report: {re.escape(str(file))}, {text}", capsys.readouterr().err)
    assert not (tmp_path / "report").exists()


def test_no_records_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(tmp_path) == 2
    assert f"there are no records at {tmp_path}. Hint: python -m bench.run" in capsys.readouterr().err


def test_readme_is_written_between_its_markers_the_same_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.machine.ROOT", tmp_path)
    readme = tmp_path / "README.md"
    before, after = "# Title\n\nno figures\n\n", "\n\nthe rest <!-- bench:other -->\n"
    readme.write_text(f"{before}<!-- bench:begin -->stale<!-- bench:end -->{after}")
    shares = [{"what": "share", "value": 1.1, "required": 0.87, "met": True}]
    case = cpu("shots", "forward", 16384, {"ours": times(0.5), "dense": times(3.25)}, shares)
    problems = [record("large/hd", name, routing=None) for name in ("numba", "torch sdpa flash")]
    file = write(tmp_path / "x.jsonl", [*problems, *growth(), case, *list(grid())[:2]])
    assert report(file, "--readme") == 0
    text = readme.read_text()
    assert text.startswith(f"{before}<!-- bench:begin -->\n\n| problem |")
    assert text.endswith(f"\n\n<!-- bench:end -->{after}")
    assert "stale" not in text
    row = "| `large/hd` | 75,600 | 4 of 40 heads | float32 | forward | 22.3 s (numba) | 89.2 s (torch sdpa flash) "
    assert row + "| 4.0x (3.8x to 4.2x) | 5.2x | 76 % |  | 0.10 |" in text
    assert "| `shots` | forward with routing | 500 ms | 3.25 s | 165.49 | 1.10 | 0.87 |  |" in text
    assert "65,536 tokens take 655 ms, 1.25 (goal 1.3) times as long" in text
    shown = re.findall(r"!\[.*\]\((.*)\)", text)
    names = ("speedup-numba-float32", "growth", "crossover-numba-forward-float32-d64")
    assert shown == [f"docs/bench/fake-cpu-{name}.png" for name in names]
    first = {path: (tmp_path / path).read_bytes() for path in shown}
    assert report(file, "--readme") == 0
    assert readme.read_text() == text
    assert {path: (tmp_path / path).read_bytes() for path in shown} == first


def test_markers_that_name_the_machine_are_preferred(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    others = "<!-- bench:begin -->a<!-- bench:end --><!-- bench:begin other -->b<!-- bench:end other -->"
    readme.write_text(f"{others}<!-- bench:begin fake-cpu -->c<!-- bench:end fake-cpu -->")
    assert import_module("bench.report.readme").rewrite(readme, choose(record()), []) == [readme]
    text = readme.read_text()
    assert text.startswith(f"{others}<!-- bench:begin fake-cpu -->\n\n| problem |")
    assert text.endswith("`.\n\n<!-- bench:end fake-cpu -->")


@pytest.mark.parametrize(
    ("text", "quick", "error"),
    [
        ("# Title\n", False, "must hold the lines <!-- bench:begin --> and <!-- bench:end -->, once .* got 0 and 0"),
        ("<!-- bench:end --><!-- bench:begin -->", False, "once and in this order, got 1 and 1 of them"),
        ("<!-- bench:begin --><!-- bench:end -->", True, "--readme must be given full records, got quick ones"),
    ],
)
def test_readme_that_cannot_be_written_stays(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    quick: bool,
    error: str,
) -> None:
    monkeypatch.setattr("bench.machine.ROOT", tmp_path)
    (tmp_path / "README.md").write_text(text)
    assert report(write(tmp_path / "x.jsonl", [record(quick=quick)]), "--readme") == 2
    assert re.search(error, capsys.readouterr().err)
    assert (tmp_path / "README.md").read_text() == text
    assert not (tmp_path / "docs").exists()


@pytest.mark.parametrize(
    ("value", "text"),
    [(12.34, "12.3 s"), (0.5244, "524 ms"), (1.5e-5, "15.0 µs"), (2e-9, "2.00 ns"), (0.0, "0 ns"), (None, "-")],
)
def test_seconds_in_words(value: float | None, text: str) -> None:
    assert import_module("bench.report.wording").seconds(value) == text


def test_inputs_of_the_backward_hold_the_gradient_of_out() -> None:
    size = import_module("bench.report.figures.memory").input_bytes
    made = record(tokens=100, queries=10, heads=4, kv_heads=2, head_dim=8, v_head_dim=16, dtype="bfloat16")
    assert size(made) == 2 * (10 * 4 * 8 + 100 * 2 * (8 + 16))
    assert size(made | {"mode": "forward+backward"}) == size(made) + 2 * 10 * 4 * 16


def test_of_dense_contenders_the_fastest_of_a_setting_alone_stays() -> None:
    few = import_module("bench.report.results").without_slow_dense
    ours, dense = record(), record(contender="torch sdpa flash")
    slow = dense | {"contender": "math", "seconds": times(99.0)}
    assert few([slow, ours, dense, without_time("skipped", contender="torch flex")]) == [ours, dense]
    other = slow | {"mode": "forward+backward"}
    assert few([slow, dense, other]) == [dense, other]


def test_a_row_of_the_grid_is_drawn_beside_the_dense_time_of_each_length() -> None:
    results = choose(*grid())
    time = import_module("bench.report.figures.time")
    (picture,) = time.IDEA.pictures(results, import_module("bench.report.looks").Looks(results.all))
    drawn = [(r["tokens"], r["contender"], r["top_k"]) for r in picture.records]
    lengths = (2048, 8192, 32768, 131072)
    assert sorted(drawn) == sorted([(n, "numba", 16) for n in lengths] + [(n, "torch sdpa flash", 1) for n in lengths])


def test_contenders_keep_their_look_whatever_is_drawn() -> None:
    looks = import_module("bench.report.looks").Looks(everything())
    assert len({looks[name] for name in CONTENDERS}) == len(CONTENDERS)
    assert looks.order(reversed(CONTENDERS)) == ["numba", "torch sdpa flash", "moba var-len", "torch flex"]
    assert looks.label("torch sdpa flash") == "torch sdpa flash (dense)"
