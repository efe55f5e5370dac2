"""Results that come with the package: which of them serve a key, how they are written, that those here are whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sparsemoc as moc
from sparsemoc.backends import Options, Problem, available_backends, get_backend
from sparsemoc.spec.errors import SpecError
from sparsemoc.tuning import shipped
from sparsemoc.tuning.key import Key
from sparsemoc.tuning.outcome import config_of, fields_of
from sparsemoc.tuning.store import Entry
from tests.tuning.samples import EARLY, ENVIRONMENT, KEY, LATE, entry, outcome

REAL = shipped.data_folder()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(shipped, "data_folder", lambda: tmp_path / "data")
    shipped._records.cache_clear()
    yield tmp_path / "data"
    shipped._records.cache_clear()


@pytest.fixture
def tiles(folder: Path) -> Callable[..., list[int]]:
    """Ship entries, and return the tiles that a key then gets."""

    def tiles(entries: list[Entry], key: Key = KEY) -> list[int]:
        shipped.ship(entries, folder)
        shipped._records.cache_clear()
        return [config["tile"] for config in shipped.load("znver4", "numba", key)]

    return tiles


def test_nothing_shipped_is_nothing_found(folder: Path) -> None:
    assert shipped.load("znver4", "numba", KEY) == []


def test_the_key_itself_comes_first(tiles: Callable[..., list[int]]) -> None:
    near = entry(tile=1, seconds=0.1, gradients=True)
    assert tiles([near, entry(tile=2)]) == [2, 1]


@pytest.mark.parametrize("name", ["chunk", "slots", "anchored", "q_tokens", "k_tokens"])
def test_lengths_within_a_factor_of_two_are_near(tiles: Callable[..., list[int]], name: str) -> None:
    length = 16 * getattr(KEY, name)
    entries = [entry(tile=tile, **{name: length * tile // 16}) for tile in (1, 2, 4, 8, 16, 64, 128)]
    entries += [entry(0.4, tile=32, **{name: length * 2})]  # as far as 8, and it gained more
    assert tiles(entries, KEY._replace(**{name: length})) == [16, 32, 8]


def test_the_nearest_in_all_lengths_comes_first(tiles: Callable[..., list[int]]) -> None:
    entries = [
        entry(tile=3, chunk=4096, q_tokens=16384, k_tokens=65536),
        entry(tile=2, chunk=4096, q_tokens=65536),
        entry(tile=1, slots=6),
    ]
    assert tiles(entries) == [1, 2, 3]


@pytest.mark.parametrize("name", ["slots", "anchored"])
def test_none_is_near_to_none_alone(tiles: Callable[..., list[int]], name: str) -> None:
    none, one = KEY._replace(**dict[str, Any]({name: 0})), KEY._replace(**dict[str, Any]({name: 1}))
    entries = [Entry(ENVIRONMENT, none, outcome(tile=1)), Entry(ENVIRONMENT, one, outcome(tile=2))]
    assert tiles(entries, none) == [1]
    assert tiles(entries, one) == [2]


@pytest.mark.parametrize("name", sorted(set(KEY._fields) - {*shipped.NEAR, *shipped.FREE}))
def test_all_else_must_be_equal(tiles: Callable[..., list[int]], name: str) -> None:
    value = getattr(KEY, name)
    another: Any = value + "x" if isinstance(value, str) else type(value)(not value)
    assert tiles([Entry(ENVIRONMENT, KEY._replace(**{name: another}), outcome(tile=1))]) == []


def test_gradients_and_rows_break_ties(tiles: Callable[..., list[int]]) -> None:
    entries = [
        entry(tile=5, chunk=4096, gradients=True),
        entry(tile=4, gradients=True, rows=32),
        entry(tile=3, gradients=True),
        entry(tile=2, rows=64),
        entry(tile=1, rows=32),
    ]
    assert tiles(entries) == [1, 2, 3, 4, 5]


def test_a_deterministic_key_takes_any_rows_by_what_they_gained(tiles: Callable[..., list[int]]) -> None:
    key = KEY._replace(rows=0)
    entries = [entry(0.9, tile=1, rows=1), entry(0.2, tile=2, rows=64), entry(0.5, tile=3, rows=16)]
    assert tiles(entries, key) == [2, 3, 1]
    assert tiles([entry(0.8, tile=4, rows=0)], key) == [4, 2, 3, 1]


def test_what_is_not_faster_is_shipped_as_the_default(tiles: Callable[..., list[int]]) -> None:
    default = entry(1.0, tile=64)
    assert tiles([default, entry(0.5, tile=1, q_tokens=16384)]) == [64, 1]


def test_other_architectures_and_backends_have_files_of_their_own(folder: Path) -> None:
    strange = ENVIRONMENT._replace(architecture="../x y", backend=".hidden")
    others = [ENVIRONMENT._replace(architecture="sm_90"), ENVIRONMENT._replace(backend="triton"), strange]
    written = shipped.ship([entry(tile=i, environment=one) for i, one in enumerate([ENVIRONMENT, *others])], folder)
    files = [path.relative_to(folder).as_posix() for path in written]
    assert files == ["--x-y/-hidden.json", "sm_90/numba.json", "znver4/numba.json", "znver4/triton.json"]
    assert shipped.load("sm_90", "numba", KEY) == [{"tile": 1}]
    assert shipped.load("znver4", "triton", KEY) == [{"tile": 2}]
    assert shipped.load("../x y", ".hidden", KEY) == [{"tile": 3}]
    assert shipped.load("--x-y", "-hidden", KEY) == [], "the file is another's"


def test_other_devices_and_versions_of_the_architecture_are_served(tiles: Callable[..., list[int]]) -> None:
    older = ENVIRONMENT._replace(device="AMD Ryzen", versions="numba 0.60", sources="f" * 16, driver="1")
    assert tiles([entry(tile=7, environment=older)]) == [7]


def test_shipping_again_merges_and_the_newer_wins(folder: Path, tiles: Callable[..., list[int]]) -> None:
    assert tiles([entry(tile=1, time=LATE), entry(tile=2, rows=32)]) == [1, 2]
    assert tiles([entry(tile=3, time=EARLY), entry(tile=4, rows=32, time=LATE), entry(tile=5, rows=64)]) == [1, 4, 5]
    text = (folder / "znver4" / "numba.json").read_text()
    shipped.ship([], folder)
    shipped.ship([entry(tile=5, rows=64)], folder)
    assert (folder / "znver4" / "numba.json").read_text() == text, "what brings nothing new changes nothing"


def test_the_file(folder: Path) -> None:
    (file,) = shipped.ship([entry(0.3, tile=1), entry(0.5, rows=2, tile=2)], folder)
    held = json.loads(file.read_text())
    about = {"device": "AMD EPYC", "versions": ENVIRONMENT.versions, "sources": ENVIRONMENT.sources, "time": EARLY}
    assert held == {
        "version": 1,
        "architecture": "znver4",
        "backend": "numba",
        "entries": [
            {"key": KEY._asdict() | {"rows": 2}, "config": {"tile": 2}, "gain": 2.0} | about,
            {"key": KEY._asdict(), "config": {"tile": 1}, "gain": 3.333} | about,
        ],
    }
    assert len(file.read_text().splitlines()) == 4, "a line to a result"


def damaged(held: dict[str, Any], **values: Any) -> str:
    return json.dumps(held | values)


DAMAGES: dict[str, Callable[[dict[str, Any]], str]] = {
    "empty": lambda held: "",
    "cut": lambda held: json.dumps(held)[:-9],
    "deep": lambda held: "[" * 100_000,
    "version": lambda held: damaged(held, version=2),
    "architecture": lambda held: damaged(held, architecture="znver5"),
    "backend": lambda held: damaged(held, backend="triton"),
    "entries": lambda held: damaged(held, entries={}),
    "entry": lambda held: damaged(held, entries=[3]),
    "key": lambda held: damaged(held, entries=[held["entries"][0] | {"key": {}}]),
    "gain": lambda held: damaged(held, entries=[held["entries"][0] | {"gain": -1}]),
    "time": lambda held: damaged(held, entries=[held["entries"][0] | {"time": "noon"}]),
    "config": lambda held: damaged(held, entries=[held["entries"][0] | {"config": [1]}]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_ships_nothing_and_is_not_written_over(
    folder: Path, damage: Callable[[dict[str, Any]], str]
) -> None:
    (file,) = shipped.ship([entry()], folder)
    text = damage(json.loads(file.read_text()))
    file.write_text(text)
    assert shipped.load("znver4", "numba", KEY) == []
    with pytest.raises(SpecError, match=rf"^ship: {file} must be a file of shipped results, or absent: .*Hint: remove"):
        shipped.ship([entry()], folder)
    assert file.read_text() == text


def test_a_config_is_the_callers_own(tiles: Callable[..., list[int]]) -> None:
    tiles([entry(tile=1)])
    shipped.load("znver4", "numba", KEY)[0]["tile"] = 99
    assert shipped.load("znver4", "numba", KEY) == [{"tile": 1}]


FILES = [path for path in sorted(Path(str(REAL)).glob("*/*.json")) if not path.name.endswith(".crossover.json")]


@pytest.mark.parametrize("file", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_the_package_ships_is_whole(file: Path) -> None:
    held = json.loads(file.read_text())
    assert shipped.place(held["architecture"], held["backend"]) == (file.parent.name, file.stem)
    records = shipped.records_of(held, held["architecture"], held["backend"])
    assert records
    assert len({record.key for record in records}) == len(records)
    if available_backends().get(held["backend"]) is not None:
        pytest.skip(f"backend {held['backend']} is absent here: its class of configs cannot be asked")
    backend = get_backend(held["backend"])
    for record in records:
        config = config_of(backend, problem_like(record.key), record.config)  # raises where a field breaks a rule
        assert fields_of(config) == record.config


def problem_like(key: Key) -> Problem:
    plan = moc.plan(moc.RoutingSpec(chunks=moc.Chunks(size=16), top_k=1), tokens=64)
    return Problem(
        plan=plan, framework="numpy", device="cpu", dtype=key.dtype, batch=1, heads=key.group, kv_heads=1,
        head_dim=key.head_dim, v_head_dim=key.v_head_dim, options=Options(precision=key.precision),
    )  # fmt: skip


def test_the_package_finds_its_own_data() -> None:
    assert Path(str(REAL)) == Path(shipped.__file__).parent / "data"
