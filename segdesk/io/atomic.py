"""Writing files and folders so that an interruption leaves the old or the new one."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from segdesk.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC})


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``; a reader sees the old file or the whole new one.

    The folder of ``path`` is made where it is missing.

    Raises
    ------
    InputError
        The disk is full, read-only, or the user may not write there.
    """
    with atomic_stream(path) as stream:
        stream.write(data)


@contextmanager
def atomic_stream(path: Path) -> Iterator[BinaryIO]:
    """Write a file piece by piece; see :func:`atomic_write_bytes`."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("x+b") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, line ends untouched; see :func:`atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode("utf-8"))


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Fill a folder beside ``target`` that takes its place when the block ends well.

    An existing ``target`` is replaced as a whole. An error inside the block
    removes the new folder, with the parents made for it, and leaves ``target``
    as it was.

    Yields
    ------
    Path
        An empty folder to write into.

    Raises
    ------
    InputError
        The disk is full, read-only, or the user may not write there.
    """
    target = Path(target)
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    missing = [folder for folder in target.parents if not folder.exists()]
    with explain_os_errors(target):
        try:
            beside.mkdir(parents=True)
            yield beside
            move_into_place(beside, target)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            for folder in missing:
                with suppress(OSError):  # it holds something else by now
                    folder.rmdir()
            raise


@contextmanager
def explain_os_errors(path: Path, *, reading: bool = False) -> Iterator[None]:
    """Turn an :class:`OSError` the user can mend into an :class:`InputError`.

    Parameters
    ----------
    path
        The file or folder the sentence names.
    reading
        Whether the block reads ``path``; it writes to it otherwise.
    """
    try:
        yield
    except OSError as error:
        sentence = _sentence(Path(path), error, reading=reading)
        if sentence is None:
            raise
        raise InputError(sentence) from error


def free_bytes(path: Path) -> int:
    """Return the free space, in bytes, of the disk ``path`` is on or will be on."""
    existing = Path(path).absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    return shutil.disk_usage(existing).free


def _sentence(path: Path, error: OSError, *, reading: bool) -> str | None:
    if error.errno in FULL_DISK:
        return f"The disk holding {path} is full; free some space and try again."
    if error.errno == errno.EROFS:
        return f"{path} cannot be written to because its disk is read-only; choose another folder."
    if isinstance(error, PermissionError):
        if reading:
            return f"{path} may not be read by you; ask for its permissions to be changed."
        return (
            f"{path} cannot be written to: you have no permission, or another program has it open; "
            "choose another folder or close that program."
        )
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"{path} does not exist; check the path."
    if isinstance(error, FileExistsError | IsADirectoryError):
        return f"{path} is in the way: a file and a folder share that name; choose another name."
    return None


def move_into_place(new: Path, target: Path) -> None:
    """Let a filled folder take the place of ``target``, on disk when this returns."""
    _sync_tree(new)
    _swap_in(new, target)


def _swap_in(new: Path, target: Path) -> None:
    if not target.exists():
        os.replace(new, target)
    else:
        # No system call swaps two folders everywhere; between these two
        # renames the old one is whole, only under another name.
        old = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
        os.replace(target, old)
        try:
            os.replace(new, target)
        except BaseException:
            os.replace(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    sync_folder(target.parent)


def _sync_tree(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            # Windows only flushes handles open for writing.
            with file.open("r+b") as stream:
                os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` outlive a power cut; Windows needs no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
