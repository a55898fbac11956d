"""Where an image is: a file or folder of this computer, or an address elsewhere."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pydantic import PlainValidator

#: A path, or text such as ``s3://bucket/image.ome.zarr``, as fsspec takes it.
Address = Path | str


def is_remote(address: Address) -> bool:
    """Tell whether this is an address for fsspec and not a path of this computer."""
    return "://" in str(address) and not str(address).startswith("file://")


def local_path(address: Address) -> Path:
    """Return the path of a file or folder of this computer, ``file://`` taken off."""
    text = str(address)
    return Path(url2pathname(urlsplit(text).path) if text.startswith("file://") else text)


def to_address(text: Address) -> Address:
    """Return a path for what lies on this computer, and text for what does not."""
    return str(text) if is_remote(text) else local_path(text)


def name_of(address: Address) -> str:
    """Return the last part of a path or address."""
    return PurePosixPath(address).name if is_remote(address) else Path(address).name


def stem_of(address: Address) -> str:
    """Return what the names of an image's results begin with."""
    return Path(name_of(address).removesuffix(".zip")).stem


def is_gone(address: Address) -> bool:
    """Tell whether a file or folder is missing; whether a server answers is not asked."""
    return not is_remote(address) and not local_path(address).exists()


def _read(value: object) -> Address:
    if not isinstance(value, str | Path):
        raise ValueError("this is neither a path nor an address")
    return to_address(value)


#: A field that holds an address: JSON has only text for paths and addresses.
AnyAddress = Annotated[Address, PlainValidator(_read)]
