from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from segdesk.core.errors import InputError
from segdesk.io.atomic import atomic_folder, atomic_write_bytes, atomic_write_text, free_bytes


def test_replaces_a_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "sub" / "a.txt", "old")
    atomic_write_text(tmp_path / "sub" / "a.txt", "µ\n")
    assert (tmp_path / "sub" / "a.txt").read_bytes() == "µ\n".encode()
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["a.txt"]


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "prediction"
    with atomic_folder(target) as folder:
        (folder / "old.txt").write_text("1")
        assert not target.exists()
    with atomic_folder(target) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "new.txt").write_text("2")
    assert [p.name for p in target.rglob("*.txt")] == ["new.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["prediction"]


def test_an_error_leaves_the_old_folder_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "prediction"
    with atomic_folder(target) as folder:
        (folder / "old.txt").write_text("1")

    def fail() -> None:
        with atomic_folder(target) as folder:
            (folder / "half.txt").write_text("2")
            raise RuntimeError("died here")

    with pytest.raises(RuntimeError, match="died here"):
        fail()
    assert [p.name for p in tmp_path.rglob("*.txt")] == ["old.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["prediction"]


def test_a_full_disk_is_explained_and_keeps_the_old_file(tmpfs: Callable[..., Path]) -> None:
    disk = tmpfs("size=256k")
    atomic_write_bytes(disk / "labels.tif", b"old")
    with pytest.raises(InputError, match=r"disk holding .*labels.tif is full; free some space"):
        atomic_write_bytes(disk / "labels.tif", bytes(1_000_000))
    assert [p.name for p in disk.iterdir()] == ["labels.tif"]
    assert (disk / "labels.tif").read_bytes() == b"old"
    with (
        pytest.raises(InputError, match="full; free some space"),
        atomic_folder(disk / "run") as folder,
    ):
        (folder / "big").write_bytes(bytes(1_000_000))
    assert [p.name for p in disk.iterdir()] == ["labels.tif"]


def test_a_read_only_disk_is_explained(tmpfs: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="cannot be written to because its disk is read-only"):
        atomic_write_bytes(tmpfs("ro") / "a.txt", b"")


def test_a_file_where_a_folder_should_be_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"in the way|does not exist"):
        atomic_write_bytes(tmp_path / "file" / "a.txt", b"")


def test_free_space_of_a_folder_to_be_made(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") > 0
