"""OME-Zarr images and plain Zarr arrays, local or at an address of fsspec's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from zipfile import BadZipFile, is_zipfile

import fsspec
import numpy as np
import zarr
from zarr.storage import FsspecStore, LocalStore, WrapperStore, ZipStore

from segdesk.core.errors import InputError
from segdesk.io.boxes import ChunkedImage, Layout, Pixels, guarded

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

METADATA_NAMES: Final = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
Node = TypeVar("Node", "zarr.Array[Any]", zarr.Group)

#: Of an image on a server that tells nothing of its files, a level of so many pixels tells
#: which image it is, or boxes of so many a side at so many places each way.
MOST_PIXELS: Final = 2048**2
BOX: Final = 64
PLACES: Final = 4

#: Axes of OME-Zarr before 0.3, which does not name them, and of nameless arrays.
DEFAULT_AXES: Final = "TCZYX"


def open_zarr(address: str | Path) -> ChunkedImage:
    """Open an OME-Zarr image, or one Zarr array.

    The axes of an array are those that it names; without names two are YX, three ZYX,
    four CZYX, five TCZYX, and a last axis of length 3 or 4 holds colours.

    Parameters
    ----------
    address
        A folder or zip file, or text for fsspec.

    Raises
    ------
    InputError
        There is no image, it is a label image or a plate, its metadata or store are
        damaged, or fsspec lacks a package for the address.
    """
    name = _name(address)
    path = address if isinstance(address, Path) else None
    guard = guarded(name, path)
    with ExitStack() as stack:
        with guard(""):
            store = _Watched(_store(name, address))
            node = _node(name, store)
            stack.callback(store.close)
            if isinstance(node, zarr.Group):
                arrays, layout = _pyramid(name, node)
            else:
                arrays, layout = [node], Layout(_axes_of(name, node))
            pieces = [_ZarrArray(array, store) for array in arrays]
        return ChunkedImage(name, pieces, layout, guard, stack.pop_all())


def describe_gaps(path: Path) -> str:
    """Say how many chunks of the finest level are missing; an empty text for none.

    Zarr takes those for empty ones, which a writer may leave out, so this is no error;
    but a copy that broke off looks the same.

    Raises
    ------
    InputError
        As :func:`open_zarr`.
    """
    name = _name(path)
    with guarded(name, path)(""), ExitStack() as stack:
        store = _Watched(_store(name, path))
        node = _node(name, store)
        stack.callback(store.close)
        array = _pyramid(name, node)[0][0] if isinstance(node, zarr.Group) else node
        there, total = array.nchunks_initialized, array.nchunks
    if there >= total:
        return ""
    return (
        f"{name} lacks {total - there} of its {total} chunks, which count as "
        f"{array.fill_value or 0}: they may have been empty, but if they were not, a copy broke "
        "off; then copy it again."
    )


def hash_remote(address: str) -> str:
    """Return a SHA-256 of the metadata at an address and of the listing of its files.

    Where the server does not list them with sizes or entity tags, as plain web servers do
    not, the pixels of the coarsest level count instead; of one with more than
    :data:`MOST_PIXELS` its address, and pixels at :data:`PLACES` squared places.

    Raises
    ------
    InputError
        As :func:`open_zarr` and reading a box.
    """
    name = _name(address)
    with guarded(name, None)(""):
        store = _Watched(_store(name, address))
        node = _node(name, store)
        if isinstance(node, zarr.Group):
            _pyramid(name, node)
        digest = hashlib.sha256()
        for key, text in sorted(store.documents.items()):
            digest.update(f"{key}\0{len(text)}\0".encode() + text)
        files = _listing(address)
    for file in files:
        digest.update("".join(f"{part}\0" for part in file).encode())
    if not any(size is not None or tag for _, size, tag in files):
        with open_zarr(address) as source:
            *_, height, width = source.level_shape(source.levels - 1)
            if height * width > MOST_PIXELS:
                digest.update(address.encode())  # two images may be alike in these places
            for box in _some_boxes(source):
                digest.update(box.tobytes())
    return digest.hexdigest()


def _listing(address: str) -> list[tuple[str, int | None, str]]:
    """Return name, size and entity tag of each file where the server lists them."""
    if "http://" in address or "https://" in address:
        return []  # at best a page of names for each folder, and thousands of them to fetch
    files, root = fsspec.url_to_fs(address)
    files.invalidate_cache(root)  # what was listed before may have changed
    try:
        found = files.find(root, detail=True)
    except (NotImplementedError, PermissionError):  # other errors may pass, and are no answer
        return []
    inside = {name.removeprefix(root).lstrip("/"): about for name, about in found.items()}
    tags = ("ETag", "etag", "md5Hash", "content_md5")
    return [
        (name, about.get("size"), next((about[t] for t in tags if t in about), ""))
        for name, about in sorted(inside.items())
        if not name.startswith("labels/")
    ]


def _some_boxes(source: ChunkedImage) -> Iterator[Pixels]:
    """Read the middle plane of the coarsest level, or boxes spread over a large one."""
    level = source.levels - 1
    *stack, height, width = source.level_shape(level)
    z = stack[0] // 2 if stack else 0
    if height * width <= MOST_PIXELS:
        yield source.read(z, slice(0, height), slice(0, width), level)
        return
    for place in product(_spread(height), _spread(width)):
        yield source.read(z, *place, level)


def _spread(length: int) -> list[slice]:
    side = min(BOX, length)
    starts = sorted({round(n * (length - side) / (PLACES - 1)) for n in range(PLACES)})
    return [slice(start, start + side) for start in starts]


class _Watched(WrapperStore["Store"]):
    """Notes what was not there: Zarr takes it for empty, even if the whole store is gone.

    Attributes
    ----------
    is_blosc
        Whether what is read now are chunks packed by Blosc, which reads on beyond the
        end of a chunk that was cut short.
    missing
        Keys asked for in vain.
    documents
        The metadata read, by key.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.is_blosc = False
        self.missing: list[str] = []
        self.documents: dict[str, bytes] = {}

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the bytes, and take note."""
        value = await super().get(key, prototype, byte_range)
        if value is None:
            self.missing.append(key)
        elif key.endswith(METADATA_NAMES):
            self.documents[key] = value.to_bytes()
        elif self.is_blosc:
            # The header's bytes 12 to 16 tell the length of the whole.
            told = int.from_bytes(value[12:16].to_bytes(), "little")
            if len(value) < max(16, told):
                raise ValueError(f"{key} has {len(value)} bytes of {told}")
        return value


class _ZarrArray:
    """An array whose store is looked after while it is read."""

    def __init__(self, array: zarr.Array[Any], store: _Watched) -> None:
        self._array, self._store = array, store
        self.shape, self.chunks = array.shape, array.chunks
        self.dtype = np.dtype(array.dtype)
        packers = [type(codec).__name__ for codec in array.compressors]
        self._is_blosc = array.shards is None and packers[-1:] in (["Blosc"], ["BloscCodec"])

    def __getitem__(self, box: tuple[slice, ...]) -> Pixels:
        self._store.missing.clear()
        self._store.is_blosc = self._is_blosc
        data = np.asarray(self._array[box])
        if self._store.missing:
            # Raises where the array itself is gone, an unplugged disk for one.
            zarr.open_array(self._store, path=self._array.path, mode="r")
        return data


def _name(address: str | Path) -> str:
    return str(address).rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]


def _store(name: str, address: str | Path) -> Store:
    if isinstance(address, Path):
        if address.suffix.lower() == ".zip":
            if not is_zipfile(address.resolve(strict=True)):
                raise BadZipFile(f"{name} is no zip file")
            return ZipStore(address, mode="r")
        return LocalStore(address, read_only=True)
    try:
        return FsspecStore.from_url(address, read_only=True)
    except ImportError as error:
        raise InputError(
            f"{address} needs a package that is not installed ({error}); install it and try again."
        ) from None
    except ValueError as error:
        raise InputError(f"{address} is no address SegDesk knows ({error}); check it.") from None


def _node(name: str, store: _Watched) -> zarr.Array[Any] | zarr.Group:
    try:
        return zarr.open(store=store, mode="r")
    except FileNotFoundError:
        raise InputError(
            f"{name} is not there or holds no Zarr metadata (zarr.json, .zgroup or .zarray); "
            "check the path, or copy it again."
        ) from None


def _pyramid(name: str, group: zarr.Group) -> tuple[list[zarr.Array[Any]], Layout]:
    """Return the resolutions of an OME-Zarr image, finest first."""
    told = dict(group.attrs)
    ome = cast("Mapping[str, Any]", told.get("ome", told))
    if "image-label" in ome or ("labels" in ome and "multiscales" not in ome):
        raise InputError(f"{name} holds labels (masks) and not an image; name the image itself.")
    if "plate" in ome or "well" in ome:
        raise InputError(
            f"{name} is a plate or well of several images; name one of them, such as "
            f"{name}/{'A/1/0' if 'plate' in ome else '0'}."
        )
    if "bioformats2raw.layout" in ome and "multiscales" not in ome:
        return _pyramid(name, _child(name, group, "0", zarr.Group))
    if "multiscales" not in ome:
        inside = ", ".join(sorted(key for key, _ in group.members())[:5])
        raise InputError(
            f"{name} is a Zarr group without OME-Zarr's multiscales metadata; name an array in it"
            + (f" ({inside})." if inside else ".")
        )
    scales = ome["multiscales"][0]
    paths = [str(part["path"]) for part in scales["datasets"]]
    arrays = [_child(name, group, path, zarr.Array) for path in paths]
    axes = _letters(scales.get("axes") or DEFAULT_AXES[-arrays[0].ndim :])
    _check_axes(name, axes, arrays[0].ndim)
    for array in arrays[1:]:
        same = [i for i, a in enumerate(axes) if a not in "ZYX"]
        if array.ndim != len(axes) or any(array.shape[i] != arrays[0].shape[i] for i in same):
            raise InputError(
                f"The resolution levels of {name} do not belong together; export it again."
            )
    return arrays, Layout(axes)


def _child(name: str, group: zarr.Group, path: str, kind: type[Node]) -> Node:
    try:
        found = group[path]
    except KeyError:
        found = None
    if not isinstance(found, kind):
        raise InputError(
            f"{name} lacks {path!r}, which its metadata names: its copy broke off; copy it again "
            "from where it came from."
        )
    return found


def _letters(axes: Sequence[str | Mapping[str, Any]]) -> str:
    """Return a capital per axis, C for channels whatever they are called."""
    letters = ""
    for axis in axes:
        told = {"name": axis} if isinstance(axis, str) else axis
        letters += "C" if told.get("type") == "channel" else str(told["name"])[0].upper()
    return letters


def _axes_of(name: str, array: zarr.Array[Any]) -> str:
    names: Any = getattr(array.metadata, "dimension_names", None)
    names = names or array.attrs.get("_ARRAY_DIMENSIONS")
    if names and all(names):
        axes = _letters([str(axis) for axis in names])
        if axes.count("Y") == axes.count("X") == 1:
            _check_axes(name, axes, array.ndim)
            return axes
    if array.ndim > 2 and array.shape[-1] in (3, 4):
        axes = "TZYXC"[-array.ndim :]
    else:
        axes = {3: "ZYX"}.get(array.ndim, DEFAULT_AXES[-array.ndim :])
    _check_axes(name, axes, array.ndim)
    return axes


def _check_axes(name: str, axes: str, count: int) -> None:
    if len(axes) != count or axes.count("Y") != 1 or axes.count("X") != 1:
        raise InputError(
            f"{name} has {count} axes, named {axes.lower() or 'nothing'}, and so is not an image; "
            "export it again."
        )
