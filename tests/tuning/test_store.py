"""The user's cache: whatever other processes, a full disk or a person did to it, a result is whole or a miss."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsemoc.backends.files import cache_folder
from sparsemoc.spec.errors import SpecError
from sparsemoc.tuning import files
from sparsemoc.tuning.export import export, read_export
from sparsemoc.tuning.key import Key
from sparsemoc.tuning.store import Entry, Merged, Store
from tests.tuning.samples import EARLY, ENVIRONMENT, KEY, LATE, entry, outcome

OTHER = ENVIRONMENT._replace(device="Intel Xeon", architecture="sapphirerapids")


def file_of(store: Store, found: Entry) -> Path:
    return store.root / "tune" / "v1" / found.environment.digest / "entries" / f"{found.key.digest}.json"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def test_a_result_comes_back_whole(store: Store) -> None:
    assert store.load(ENVIRONMENT, KEY) is None
    assert store.save(*entry()) is None
    assert Store(store.root).load(ENVIRONMENT, KEY) == outcome(tile=128)
    assert list(store.entries()) == [entry()]


def test_a_file_to_a_key_and_a_manifest_to_an_environment(store: Store) -> None:
    for held in (entry(), entry(rows=32), entry(environment=OTHER)):
        assert store.save(*held) is None
        assert Entry.from_dict(json.loads(file_of(store, held).read_text())) == held
    found = {path.relative_to(store.root).parts for path in store.root.rglob("*") if path.is_file()}
    ours, theirs = ENVIRONMENT.digest, OTHER.digest
    assert found == {
        ("tune", "v1", ours, "manifest.json"),
        ("tune", "v1", ours, "entries", f"{KEY.digest}.json"),
        ("tune", "v1", ours, "entries", f"{KEY._replace(rows=32).digest}.json"),
        ("tune", "v1", theirs, "manifest.json"),
        ("tune", "v1", theirs, "entries", f"{KEY.digest}.json"),
    }
    manifest = json.loads((store.root / "tune" / "v1" / theirs / "manifest.json").read_text())
    assert manifest == {"version": 1} | OTHER._asdict()


@pytest.mark.parametrize("field", ENVIRONMENT._fields)
def test_any_other_environment_is_a_miss(store: Store, field: str) -> None:
    store.save(*entry())
    assert store.load(ENVIRONMENT._replace(**{field: "another"}), KEY) is None


@pytest.mark.parametrize("field", KEY._fields)
def test_any_other_key_is_a_miss(store: Store, field: str) -> None:
    store.save(*entry())
    value = getattr(KEY, field)
    another: Any = value + "x" if isinstance(value, str) else type(value)(not value)
    assert store.load(ENVIRONMENT, KEY._replace(**{field: another})) is None


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(files.MOST_BYTES + 1)  # takes no room on disk


def outcome_with(**values: Any) -> Callable[[Path], None]:
    return lambda path: changed(path, outcome=outcome(tile=128).to_dict() | values)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "cut": (truncated, "is no JSON"),
    "binary": (lambda path: path.write_bytes(bytes(range(256))), "is no JSON"),
    "zeros": (lambda path: path.write_bytes(bytes(4096)), "is no JSON"),
    "deep": (lambda path: path.write_text("[" * 100_000), "nested too deep"),
    "number": (lambda path: path.write_text("3"), "an entry must hold version"),
    "list": (lambda path: path.write_text("[]"), "an entry must hold version"),
    "folder": (a_folder, "is not a regular file"),
    "pipe": (a_pipe, "is not a regular file"),
    "loop": (a_link_to_itself, "symbolic links"),
    "huge": (huge, "more than"),
    "version": (lambda path: changed(path, version=2), "must be of version 1, got 2"),
    "more": (lambda path: changed(path, comment="x"), "an entry must hold version"),
    "environment": (lambda path: changed(path, environment=OTHER._asdict()), "another environment or key"),
    "key": (lambda path: changed(path, key=KEY._replace(rows=32)._asdict()), "another environment or key"),
    "key kind": (lambda path: changed(path, key=KEY._asdict() | {"rows": "16"}), "Key: rows must be int"),
    "key bool": (lambda path: changed(path, key=KEY._asdict() | {"rows": True}), "Key: rows must be int"),
    "key list": (lambda path: changed(path, key=list(KEY)), "Key must hold operation"),
    "no outcome": (lambda path: changed(path, outcome=None), "Outcome must hold"),
    "no seconds": (outcome_with(seconds=0.0), "seconds must be positive"),
    "nan": (outcome_with(seconds=float("nan")), "seconds must be positive"),
    "infinite": (outcome_with(default_seconds=float("inf")), "default_seconds must be positive and finite"),
    "config": (outcome_with(config=[1]), "config must be dict"),
    "trials": (outcome_with(trials=[3]), "Trial must hold"),
    "time": (outcome_with(time="yesterday"), "isoformat"),
    "zone": (outcome_with(time="2026-01-02T03:04:05"), "time must name its zone"),
}


@pytest.mark.parametrize(("damage", "why"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_a_miss_with_a_reason(store: Store, damage: Callable[[Path], Any], why: str) -> None:
    store.save(*entry())
    store.save(*entry(rows=32))
    path = file_of(store, entry())
    damage(path)
    assert store.load(ENVIRONMENT, KEY) is None
    assert list(store.entries()) == [entry(rows=32)]
    ((where, reason),) = store.damaged()
    assert where == path
    assert why in reason


@pytest.mark.parametrize("name", ["empty", "cut", "binary", "version", "key", "loop"])
def test_damage_is_mended_by_the_next_result(store: Store, name: str) -> None:
    store.save(*entry())
    DAMAGES[name][0](file_of(store, entry()))
    assert store.save(*entry(tile=256)) is None
    assert store.load(ENVIRONMENT, KEY) == outcome(tile=256)
    assert store.damaged() == []


def test_what_stands_in_the_way_is_told(store: Store) -> None:
    store.save(*entry())
    a_folder(file_of(store, entry()))
    reason = store.save(*entry())
    assert reason is not None
    assert reason.startswith(f"{file_of(store, entry())} cannot be written: ")
    assert [path.name for path in file_of(store, entry()).parent.iterdir()] == [f"{KEY.digest}.json"], "no leftovers"


@pytest.mark.parametrize("place", ["cache", "cache/tune", "cache/tune/v1", "cache/tune/v1/entry"])
def test_a_file_in_place_of_a_folder(tmp_path: Path, place: str) -> None:
    path = tmp_path / place.replace("entry", ENVIRONMENT.digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("not a folder")
    store = Store(tmp_path / "cache")
    assert store.load(ENVIRONMENT, KEY) is None
    assert not [*store.entries(), *store.damaged()]
    reason = store.save(*entry())
    assert reason is not None
    assert "cannot be written" in reason
    assert (store.unwritable() is None) == place.endswith("entry")


def test_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMOC_CACHE_DIR", "/proc/self/fdinfo")  # refuses root too
    store = Store()
    for reason in (store.save(*entry()), store.unwritable()):
        assert reason is not None
        assert reason.startswith("/proc/self/fdinfo/tune/v1")
    assert store.load(ENVIRONMENT, KEY) is None
    with pytest.raises(OSError, match="cannot be written"):
        store.merge([entry()])


def test_a_folder_that_can_be_written(store: Store) -> None:
    assert store.unwritable() is None
    assert [path for path in store.root.rglob("*") if path.is_file()] == []


def test_a_config_that_json_cannot_hold(store: Store) -> None:
    reason = store.save(ENVIRONMENT, KEY, outcome(tile={1, 2}))
    assert reason is not None
    assert "not JSON serializable" in reason


def test_a_writer_that_was_killed_leaves_no_harm(store: Store) -> None:
    store.save(*entry())
    leftover = file_of(store, entry()).with_name(f".{KEY.digest}.json.1234.abcdef.tmp")
    leftover.write_text('{"version": 1, "envir')
    assert store.load(ENVIRONMENT, KEY) == outcome(tile=128)
    assert list(store.entries()) == [entry()]
    assert store.damaged() == []
    assert store.save(*entry(tile=256)) is None
    assert store.clear() == 1
    assert not leftover.exists()


def test_a_writer_that_fails_half_way_keeps_the_old_result(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(*entry())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    reason = store.save(*entry(tile=256))
    assert reason == f"{file_of(store, entry())} cannot be written: No space left on device"
    assert store.load(ENVIRONMENT, KEY) == outcome(tile=128)
    assert [path.name for path in file_of(store, entry()).parent.iterdir()] == [f"{KEY.digest}.json"]


WRITER = """
import sys
sys.path.insert(0, {root!r})
from sparsemoc.tuning.store import Store
from tests.tuning.samples import entry
store, first = Store({folder!r}), int(sys.argv[1])
sys.stdin.readline()  # both begin together
for number in range(60):
    # A third of the keys is the other writer's too.
    slots = number if number % 3 == 0 else first + number
    assert store.save(*entry(seconds=0.25 if first else 0.5, tile=first or 64, slots=slots)) is None
"""


def test_processes_that_write_at_once_lose_nothing(store: Store) -> None:
    code = WRITER.format(root=str(Path(__file__).parents[2]), folder=str(store.root))
    writers = [
        subprocess.Popen([sys.executable, "-c", code, first], stdin=subprocess.PIPE, text=True)
        for first in ("0", "1000")
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    ours, theirs = outcome(0.5, tile=64), outcome(0.25, tile=1000)
    read = 0
    while any(writer.poll() is None for writer in writers):
        # A reader finds nothing or a whole result, never a part of one, nor two mixed.
        assert store.damaged() == []
        assert {found.outcome.seconds for found in store.entries()} <= {0.5, 0.25}
        read += store.load(ENVIRONMENT, KEY._replace(slots=0)) in (ours, theirs)
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    assert read, "the reader came too late to see anything"
    found = {one.key.slots: one.outcome for one in store.entries()}
    shared = {number for number in range(60) if number % 3 == 0}
    own = [{first + number for number in range(60) if number % 3} for first in (0, 1000)]
    assert set(found) == shared | own[0] | own[1]
    assert all(found[slots] == ours for slots in own[0])
    assert all(found[slots] == theirs for slots in own[1])
    assert all(found[slots] in (ours, theirs) for slots in shared)
    assert not list(store.root.rglob("*.tmp"))


def test_merge_keeps_the_newer(store: Store) -> None:
    store.save(*entry(time=EARLY))
    store.save(*entry(time=LATE, rows=32))
    store.save(*entry(time=EARLY, rows=64))
    file_of(store, entry(rows=64)).write_text("damaged")
    zoned = "2026-01-02T05:04:05+02:00"  # EARLY by another clock: no later
    news = [
        entry(time=LATE, tile=1),
        entry(time=EARLY, rows=32, tile=2),
        entry(time=EARLY, rows=64, tile=3),
        entry(time=EARLY, environment=OTHER, tile=4),
    ]
    assert store.merge(news) == Merged(added=2, replaced=1, kept=1)
    assert store.load(ENVIRONMENT, KEY) == outcome(time=LATE, tile=1)
    assert store.load(ENVIRONMENT, KEY._replace(rows=32)) == outcome(time=LATE, tile=128)
    assert store.load(ENVIRONMENT, KEY._replace(rows=64)) == outcome(time=EARLY, tile=3)
    assert store.load(OTHER, KEY) == outcome(time=EARLY, tile=4)
    assert store.merge([entry(time=zoned, environment=OTHER, tile=5)]) == Merged(added=0, replaced=0, kept=1)
    assert store.merge(news) == Merged(added=0, replaced=0, kept=4)


def test_export_carries_all_to_another_cache(store: Store, tmp_path: Path) -> None:
    held = [entry(), entry(rows=32, time=LATE), entry(environment=OTHER)]
    for one in held:
        store.save(*one)
    file = tmp_path / "new folder" / "tuned.json"
    assert export(store.entries(), file) == 3
    other = Store(tmp_path / "other")
    assert other.merge(read_export(file)) == Merged(3, 0, 0)
    assert list(other.entries()) == list(store.entries())
    assert sorted(other.entries(), key=str) == sorted(held, key=str)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file or directory"),
        ("", "is empty"),
        ("{", "is no JSON"),
        ("[]", "it must hold version and a list of entries"),
        ('{"version": 1, "entries": {}}', "it must hold version and a list of entries"),
        ('{"version": 2, "entries": []}', "its version must be 1, got 2"),
        ('{"version": 1, "entries": [3]}', r"entries\[0\]: an entry must hold version"),
    ],
)
def test_a_damaged_export_is_refused(tmp_path: Path, content: str | None, why: str) -> None:
    file = tmp_path / "tuned.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SpecError, match=rf"^read_export: {file} must be a file of exported results: .*{why}"):
        read_export(file)


def test_clear_takes_the_damaged_too_and_nothing_else(store: Store) -> None:
    assert store.clear() == 0
    store.save(*entry())
    store.save(*entry(environment=OTHER))
    file_of(store, entry()).write_text("damaged")
    others = store.root / "crossover.json"
    others.write_text("kept")
    assert store.clear() == 2
    assert not [*store.entries(), *store.damaged()]
    assert others.read_text() == "kept"
    assert store.save(*entry()) is None


def test_the_folder_is_asked_for_at_each_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSEMOC_CACHE_DIR", str(tmp_path))
    assert cache_folder() == str(tmp_path)
    assert Store().root == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SPARSEMOC_CACHE_DIR", "~/tuned")
    assert Store().root == tmp_path / "home" / "tuned"
    monkeypatch.setenv("SPARSEMOC_CACHE_DIR", "")
    assert cache_folder().endswith("sparsemoc")


def test_keys_are_told_apart_by_every_field() -> None:
    digests = {KEY.digest} | {KEY._replace(**{name: 12345}).digest for name in Key._fields}  # type: ignore[arg-type]
    assert len(digests) == 1 + len(Key._fields)
