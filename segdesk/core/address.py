"""Where an image is: a file or folder of this computer, or an address elsewhere."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import unquote, urlsplit
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
    if not is_remote(text):
        return local_path(text)
    scheme, _, rest = str(text).partition("://")
    return f"{scheme.lower()}://{rest}"


def name_of(address: Address) -> str:
    """Return the last part of a path or address; of a group in a Zarr, also what it lies in.

    ``https://host/my%20plate.zarr/A/1`` is called ``my plate-A-1.zarr``.
    """
    if not is_remote(address):
        return Path(address).name
    text = str(address).rstrip("/")
    root, _, inside = text.partition(".zarr/")
    name = PurePosixPath(root).name
    if inside:
        name = f"{name}-{inside.replace('/', '-')}.zarr"
    is_web = text.startswith(("http://", "https://"))
    return unquote(name).replace("/", "-") if is_web else name


def stem_of(address: Address) -> str:
    """Return what the names of an image's results begin with."""
    return Path(name_of(address).removesuffix(".zip")).stem


def is_gone(address: Address) -> bool:
    """Tell whether a file or folder is missing; whether a server answers is not asked."""
    return not is_remote(address) and not local_path(address).exists()


def put_back(address: Address) -> str:
    """Return what to do about an image that is not what it was, as words within a sentence."""
    if is_remote(address):
        return "put the old image back at its address"
    return "put the old file back"


def _read(value: object) -> Address:
    if not isinstance(value, str | Path):
        raise ValueError("this is neither a path nor an address")
    return to_address(value)


#: A field that holds an address: JSON has only text for paths and addresses.
AnyAddress = Annotated[Address, PlainValidator(_read)]
