"""Files: whole or not at all; JSON that is read back; fingerprints of everything that they are of."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from partikel.errors import CheckpointError, DataError
from partikel.files import (
    clear_parts,
    fingerprint,
    kept_json,
    plain,
    read_json,
    read_text,
    replacing,
    write_json,
    write_whole,
    writing_to,
)


@dataclass
class Settings:
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)


def test_an_interrupted_block_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_whole(path, "é\n")
    with pytest.raises(KeyboardInterrupt), replacing(path) as part:  # noqa: PT012
        assert (part.parent, part.suffix) == (path.parent, path.suffix)
        part.write_text("half")
        raise KeyboardInterrupt
    assert path.read_bytes() == "é\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with replacing(tmp_path / "run") as part:
            (part / "deep").mkdir(parents=True)
            (part / "deep" / name).write_text(name)
            assert not (tmp_path / "run" / "deep" / "new").exists()
    assert [p.name for p in (tmp_path / "run" / "deep").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_file_takes_the_place_of_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/kept").touch()
    with pytest.raises(OSError, match="directory"):
        write_whole(tmp_path / "out", "text")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "kept"]


def test_all_is_on_the_disk_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []

    def flush(path: Path) -> None:
        flushed.append(path.name.split("-")[-1])
        assert (tmp_path / "run").exists() == (path == tmp_path)

    monkeypatch.setattr("partikel.files._flush", flush)
    with replacing(tmp_path / "run") as part:
        part.mkdir()
        for name in ("a", "b"):
            (part / name).touch()
    assert flushed == ["a", "b", "run", tmp_path.name.split("-")[-1]]


def test_what_killed_processes_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".writing-0-run").mkdir()
    (tmp_path / ".writing-0-run" / "half").touch()
    (tmp_path / ".writing-1-log").touch()
    write_whole(tmp_path / "whole", "")
    clear_parts(tmp_path, "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".writing-1-log", "whole"]
    clear_parts(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["whole"]


def test_json_returns_what_is_read_back(tmp_path: Path) -> None:
    value = write_json(tmp_path / "a.json", {1: (1.5, "σ"), "deep": {"x": None}})
    assert value == {"1": [1.5, "σ"], "deep": {"x": None}}
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "σ" in text


def test_kept_json_is_computed_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def work() -> Any:
        calls.append(1)
        return {"x": (1, 2)}

    assert kept_json(tmp_path / "a.json", work) == {"x": [1, 2]}
    assert kept_json(tmp_path / "a.json", work) == {"x": [1, 2]}
    assert len(calls) == 1
    for damaged in (b'{"x": [1', b"", b"[]", b"{}", b"null", b"\xff"):
        (tmp_path / "a.json").write_bytes(damaged)
        with pytest.raises(DataError, match="a.json is damaged: remove it"):
            kept_json(tmp_path / "a.json", work)


def test_names_that_are_no_text_are_written_all_the_same(tmp_path: Path) -> None:
    name = "caf\udce9"  # of a file, in Latin-1
    assert write_json(tmp_path / "a.json", {name: name}) == {name: name}
    assert read_json(tmp_path / "a.json") == {name: name}
    write_whole(tmp_path / "a.txt", name)
    assert (tmp_path / "a.txt").read_text() == r"caf\udce9"


def test_a_failure_to_write_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "a.txt"
    sentence = r"cannot write to .*file \(File exists\): free some space"
    with pytest.raises(CheckpointError, match=sentence), writing_to(tmp_path):
        write_whole(place, "")
    with pytest.raises(DataError) as error, writing_to(tmp_path, "mend it", DataError):
        raise OSError(28, "No space left on device")
    assert str(error.value) == f"cannot write to {tmp_path} (No space left on device): mend it."
    for fault in (OSError(28, "full"), OSError(28, "full", ".writing-0-a.txt")):
        with pytest.raises(OSError, match="full") as raised, replacing(tmp_path / "a.txt"):
            raise fault
        assert raised.value.filename == str(tmp_path / "a.txt")  # not the temporary one


def test_fingerprints_change_with_any_part_and_with_no_order() -> None:
    value = {"a": Settings(), "b": [1, None, True]}
    assert fingerprint(value) == fingerprint({"b": (1, None, True), "a": plain(Settings())})
    text = json.dumps(plain(value), sort_keys=True).encode()
    assert fingerprint(value) == fingerprint(text) == hashlib.sha256(text).hexdigest()[:12]
    assert len(fingerprint(value, 16)) == 16
    others = [
        {"a": Settings(0.2), "b": [1, None, True]},
        {"a": Settings(sizes=(2, 1)), "b": [1, None, True]},
        {"a": Settings(), "b": [1, None]},
        {"a": Settings(), "c": [1, None, True]},
        text + b" ",
    ]
    assert len({fingerprint(each) for each in (value, *others)}) == 6


@pytest.mark.parametrize("value", [Path("a"), {1, 2}, b"", Settings, [object()]])
def test_values_that_json_has_not_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="plain values are kept, not"):
        plain(value)


# --- reading


def test_texts_are_of_plain_files_in_a_named_encoding(tmp_path: Path) -> None:
    path = tmp_path / "text"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        path.write_bytes("σ, λ²\r\nend".encode(encoding))
        assert read_text(path, DataError) == "σ, λ²\nend"
    for content, reason in (
        (b"a\n\xe9t\xe9", r"\(line 2: .*save it as UTF-8"),
        (b"a\0b", "zero bytes"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=reason):
            read_text(path, CheckpointError)
    path.write_bytes(b"four")
    with pytest.raises(DataError, match="more than 3 bytes"):
        read_text(path, DataError, most=3)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read .No such file"):
        read_text(path, DataError)
    for make, kind in ((os.mkfifo, "a pipe"), (os.mkdir, "a folder")):
        made = tmp_path / kind
        make(made)
        with pytest.raises(DataError, match=f"it is {kind}, not a plain file"):
            read_text(made, DataError)
