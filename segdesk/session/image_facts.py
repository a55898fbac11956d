"""What a look before fine-tuning needs to know of image files, found once and kept."""

from __future__ import annotations

import io
import json
import os
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from segdesk.core.address import Address, is_remote
from segdesk.core.errors import InputError
from segdesk.io.atomic import atomic_write_bytes, atomic_write_text, free_bytes
from segdesk.io.images import read_image
from segdesk.io.sources import hash_source
from segdesk.session.lookalikes import shrink

if TYPE_CHECKING:
    import numpy.typing as npt

FOLDER: Final = Path("cache", "preflight")
SEEN: Final = "seen.json"

#: With less room than this, in bytes, nothing is kept: it belongs to labels and models.
LEAST_ROOM: Final = 64 * 2**20


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image as it is now.

    Attributes
    ----------
    shape
        (Y, X) or (Z, Y, X), in pixels.
    small
        float16 (n, 64, 64), see :func:`segdesk.session.lookalikes.shrink`.
    """

    sha256: str
    shape: tuple[int, ...]
    channels: int
    small: npt.NDArray[np.float16]


class ImageFactsCache:
    """Reads images and remembers in the project what they were like.

    A file whose size and time of change are as they were is not read again, nor is an image
    at an address that has the same hash. A cache that cannot be written or read costs time
    and nothing else.
    """

    def __init__(self, project: Path) -> None:
        self._folder = project / FOLDER
        self._seen = self._read_seen()
        self._has_news = False
        self._has_room = free_bytes(project) >= LEAST_ROOM

    def of(self, path: Address) -> ImageFacts:
        """Return the facts of an image.

        Raises
        ------
        InputError
            The image is missing, damaged, no image, or holds NaN.
        """
        is_far = is_remote(path)
        stamp = hash_source(path) if is_far else _stamp(Path(path))
        known = self._seen.get(str(path))
        if stamp is not None and known is not None and known[0] == stamp:
            kept = self._read(known[1])
            if kept is not None:
                return kept
        image = read_image(path)
        sha256 = stamp if is_far and stamp is not None else hash_source(path)
        facts = ImageFacts(sha256, image.spatial_shape, image.channels,
                           shrink(image.data))  # fmt: skip
        self._write(facts)
        if stamp is not None:
            self._seen[str(path)] = (stamp, facts.sha256)
            self._has_news = True
        return facts

    def save(self) -> None:
        """Write down which files were looked at."""
        if self._has_news and self._has_room:
            with suppress(InputError, OSError):
                atomic_write_text(self._folder / SEEN, json.dumps(self._seen))

    def _read_seen(self) -> dict[str, tuple[str, str]]:
        with suppress(OSError, ValueError, AttributeError):
            stored = json.loads((self._folder / SEEN).read_text("utf-8"))
            return {path: (str(stamp), str(sha)) for path, (stamp, sha) in stored.items()}
        return {}

    def _file(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.npz"

    def _read(self, sha256: str) -> ImageFacts | None:
        with (
            suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile),
            np.load(self._file(sha256)) as kept,
        ):
            shape = tuple(int(n) for n in kept["shape"])
            return ImageFacts(sha256, shape, int(kept["channels"]), kept["small"])
        return None

    def _write(self, facts: ImageFacts) -> None:
        if not self._has_room:
            return
        stream = io.BytesIO()
        np.savez(stream, shape=facts.shape, channels=facts.channels, small=facts.small)
        with suppress(InputError, OSError):
            atomic_write_bytes(self._file(facts.sha256), stream.getvalue())


def _stamp(path: Path) -> str | None:
    """Return what changes when a file, or one in a Zarr folder, is written; None if it is gone."""
    try:
        if not path.is_dir():
            status = path.stat()
            return f"{status.st_size} {status.st_mtime_ns}"
        files = [Path(parent, name) for parent, _, names in os.walk(path) for name in names]
        all_status = [file.stat() for file in files]
    except OSError:
        return None
    newest = max((status.st_mtime_ns for status in all_status), default=0)
    return f"{len(files)} {sum(status.st_size for status in all_status)} {newest}"
