"""Label files: zlib TIFFs that any TIFF reader opens."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from segdesk.core.errors import SegDeskError
from segdesk.io.atomic import atomic_write_bytes, explain_os_errors
from segdesk.io.rasters import DECODE_ERRORS

Labels = npt.NDArray[np.uint8]

PLANES = ("labels", "supervision")


def write_labels(path: Path, labels: Labels, supervision: Labels) -> None:
    """Write labels and supervision as the two channels of one TIFF, atomically.

    Parameters
    ----------
    path
        The file to write or replace.
    labels, supervision
        uint8, (Y, X) or (Z, Y, X), of one shape.

    Raises
    ------
    InputError
        The disk is full, read-only, or the user may not write there.
    ValueError
        The arrays differ in shape or are not uint8.
    """
    if labels.shape != supervision.shape or {labels.dtype, supervision.dtype} != {np.dtype("u1")}:
        raise ValueError("labels and supervision must be uint8 arrays of one shape")
    axes = {2: "CYX", 3: "CZYX"}[labels.ndim]
    _write(path, np.stack((labels, supervision)), {"axes": axes, "planes": list(PLANES)})


def read_labels(path: Path) -> tuple[Labels, Labels]:
    """Read what :func:`write_labels` wrote.

    Returns
    -------
    labels, supervision
        uint8, (Y, X) or (Z, Y, X); yours to write to.

    Raises
    ------
    SegDeskError
        The file is missing or damaged.
    """
    stack = _read(path)
    if stack.dtype != np.uint8 or stack.ndim not in (3, 4) or len(stack) != len(PLANES):
        raise _damaged(path)
    return stack[0].copy(), stack[1].copy()


def write_plane(path: Path, array: npt.NDArray[Any]) -> None:
    """Write one array, (Y, X) or (Z, Y, X), uint8 or float32, atomically.

    Raises
    ------
    InputError
        The disk is full, read-only, or the user may not write there.
    """
    _write(path, array, {"axes": {2: "YX", 3: "ZYX"}[array.ndim]})


def read_plane(path: Path) -> npt.NDArray[Any]:
    """Read what :func:`write_plane` wrote.

    Raises
    ------
    SegDeskError
        The file is missing or damaged.
    """
    return _read(path)


def _write(path: Path, array: npt.NDArray[Any], metadata: dict[str, Any]) -> None:
    stream = io.BytesIO()
    is_real = array.dtype.kind == "f"
    # tifffile puts the metadata into the image description as JSON.
    tifffile.imwrite(
        stream,
        array,
        photometric="minisblack",
        # Of real numbers it would save 7 % and take 20 times as long as leaving them.
        compression=None if is_real else "zlib",
        compressionargs=None
        if is_real
        else {"level": 1},  # 6, the usual, takes three times as long
        metadata=metadata,
    )
    atomic_write_bytes(path, stream.getvalue())


def _read(path: Path) -> npt.NDArray[Any]:
    with explain_os_errors(path, reading=True):
        content = Path(path).read_bytes()
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as tiff:
            return np.asarray(tiff.series[0].asarray())
    except DECODE_ERRORS as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> SegDeskError:
    return SegDeskError(
        f"The label file {path} is damaged and cannot be read; restore it from a backup."
    )
