"""Mask files of any habit as label values of a project's classes.

Masks come as 0 and 255, as class ids, as object numbers, in palettes, in
colours and as JPEG. Which one a file is follows from its values and the number
of classes; what was understood is said in one sentence, so that a wrong guess
is seen by the user.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segdesk.core.classes import UNLABELLED, ClassMap
from segdesk.core.errors import InputError
from segdesk.io.rasters import Raster, read_raster

Labels = npt.NDArray[np.uint8]
Values = npt.NDArray[Any]

#: Stray greys of a JPEG lie this close to 0 or 255, for this share of pixels.
STRAY_DISTANCE = 32
STRAY_SHARE = 0.99
#: Channels this close count as grey.
GREY_TOLERANCE = 8


@dataclass(frozen=True, slots=True)
class MaskReading:
    """A mask read.

    Attributes
    ----------
    labels
        uint8 class ids and :data:`~segdesk.core.classes.UNLABELLED`, shape of
        the image.
    description
        One short sentence on what the file was taken for.
    """

    labels: Labels
    description: str


def read_mask(path: Path, classes: ClassMap, shape: tuple[int, ...]) -> MaskReading:
    """Read a mask file for an image.

    Parameters
    ----------
    path
        PNG, JPEG, BMP, GIF or TIFF.
    classes
        Classes of the project.
    shape
        Spatial shape of the image, (Y, X) or (Z, Y, X), in pixels.

    Raises
    ------
    InputError
        The file cannot be read, its size is not the image's, or its values or
        colours do not tell a class for every pixel.
    """
    path = Path(path)
    raster = read_raster(path)
    if raster.spatial_shape != tuple(shape):
        raise InputError(
            f"{path.name} is {_size(raster.spatial_shape)} pixels but its image is "
            f"{_size(tuple(shape))}; give a mask of the image's size."
        )
    if raster.palette is not None:
        return _from_palette(path, raster.data[..., 0], raster.palette, classes)
    if raster.data.shape[-1] == 1:
        return _from_values(path, raster.data[..., 0], raster, classes)
    spread = np.ptp(raster.data, axis=-1).max() if raster.dtype == "uint8" else 0
    is_grey = (raster.data == raster.data[..., :1]).all()
    if is_grey or (raster.lossy and spread <= GREY_TOLERANCE):
        return _from_values(path, raster.data[..., 0], raster, classes)
    return _from_colors(path, raster.data, classes)


def _from_values(path: Path, values: Values, raster: Raster, classes: ClassMap) -> MaskReading:
    if values.dtype.kind == "f":
        values = _whole_numbers(path, values)
    if raster.lossy:
        return _from_jpeg(path, values, classes)
    count = len(classes)
    found = _distinct(values)
    nonzero = found[found != 0]
    if count == 2 and (found.tolist() == [255] or (len(found) == 2 and found[0] == 0)):
        return _foreground(
            values, classes, f"0/{nonzero[0]} mask: {nonzero[0]} read as {classes.names[1]}"
        )
    if _within(found, count, UNLABELLED):
        return _index(values, found, classes)
    is_wide = np.dtype(raster.dtype).itemsize > 1 and raster.dtype[0] in "ui"
    if count == 2 and is_wide and found[0] >= 0:
        noun = "object" if len(nonzero) == 1 else "objects"
        return _foreground(
            values,
            classes,
            f"instance mask with {len(nonzero)} {noun}: every object read as {classes.names[1]}",
        )
    if _within(found, count + 1, UNLABELLED):
        return _index(values, found, classes)
    if count == 2 and (reading := _split(values, "mask")):
        return reading
    raise _outside(path, found, count)


def _from_jpeg(path: Path, values: Values, classes: ClassMap) -> MaskReading:
    if not values.any():
        return MaskReading(
            np.zeros(values.shape, np.uint8), f"mask of {classes.names[0]} everywhere"
        )
    reading = _split(values, "JPEG mask") if len(classes) == 2 else None
    if reading is None:
        raise InputError(
            f"{path.name} is a JPEG, which blurs the values of a mask; save the mask as PNG or "
            "TIFF instead."
        )
    return reading


def _split(values: Values, noun: str) -> MaskReading | None:
    """Split at 128 a mask of 0 and 255 with stray greys; None for any other."""
    dark = values <= STRAY_DISTANCE
    bright = values >= 255 - STRAY_DISTANCE
    # Class ids are all dark, so ask for bright ones among those that are not 0.
    clear = float((dark | bright).mean())
    if clear < STRAY_SHARE or values.max() > 255 or 2 * bright.sum() < np.count_nonzero(values):
        return None
    stray = float(((values != 0) & (values != 255)).mean())
    return MaskReading(
        (values >= 128).astype(np.uint8),
        f"{noun} with stray greys ({100 * stray:.1f} % of pixels): split at 128",
    )


def _from_palette(
    path: Path, indices: Values, palette: npt.NDArray[np.uint8], classes: ClassMap
) -> MaskReading:
    found = _distinct(indices)
    if found[-1] >= len(palette):
        raise InputError(
            f"{path.name} uses palette entry {found[-1]} of only {len(palette)}; export it again."
        )
    used = palette[found]
    brightness = used.astype(int).sum(axis=-1)
    is_binary = len(classes) == 2 and len(found) == 2
    # White first and black second is how some programs save 1-bit pictures;
    # a reader of the picture sees the object white all the same.
    is_inverted = is_binary and brightness[0] > 3 * 192 and brightness[1] < 3 * 64
    if _within(found, len(classes) + 1, UNLABELLED) and not is_inverted:
        reading = _index(indices, found, classes)
        return MaskReading(reading.labels, f"palette mask, by index: {reading.description}")
    if is_binary:
        return _two_colors(indices == found[int(np.argmax(brightness))], classes)
    return _from_colors(path, palette[indices], classes)


def _from_colors(path: Path, colors: Values, classes: ClassMap) -> MaskReading:
    flat = colors.reshape(-1, colors.shape[-1])
    used, which = np.unique(flat, axis=0, return_inverse=True)
    which = which.reshape(colors.shape[:-1])
    known = {tuple(bytes.fromhex(c.color.removeprefix("#"))): c.id for c in classes.classes}
    ids = [known.get(tuple(int(v) for v in color)) for color in used]
    if None not in ids:
        labels = np.array(ids, np.uint8)[which]
        return MaskReading(labels, "colour mask: the colours are those of the classes")
    brightness = used.astype(float).sum(axis=-1)
    if len(classes) == 2 and len(used) == 2 and brightness[0] != brightness[1]:
        return _two_colors(which == int(np.argmax(brightness)), classes)
    raise InputError(
        f"{path.name} has {len(used)} colours that do not tell the {len(classes)} classes; "
        "save it as a grey PNG whose values are the class numbers, or in the classes' colours."
    )


def _two_colors(bright: npt.NDArray[np.bool_], classes: ClassMap) -> MaskReading:
    return MaskReading(
        bright.astype(np.uint8),
        f"mask of two colours: the brighter read as {classes.names[1]}",
    )


def _index(values: Values, found: Values, classes: ClassMap) -> MaskReading:
    """Take values as class ids; one above the last id, or 255, as unlabelled."""
    count = len(classes)
    void = found[(found == count) | (found == UNLABELLED)]
    labels = values.astype(np.uint8)
    labels[values == count] = UNLABELLED
    names = [classes.names[i] for i in found if i < count]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    said = "".join(f"; {value} read as unlabelled" for value in void)
    return MaskReading(labels, f"index mask: {shown or 'no class at all'}{said}")


def _foreground(values: Values, classes: ClassMap, description: str) -> MaskReading:
    return MaskReading((values != 0).astype(np.uint8), description)


def _whole_numbers(path: Path, values: Values) -> Values:
    broken = ~np.isfinite(values) | (values != np.floor(values)) | (np.abs(values) > 2**31)
    if broken.any():
        raise InputError(
            f"{path.name} holds values such as {values[broken][0]:g}; a mask holds whole numbers, "
            "so turn probabilities into classes first."
        )
    return values.astype(np.int64)


def _distinct(values: Values) -> npt.NDArray[np.int64]:
    """Return the distinct values, sorted; counting bytes is much faster than sorting them."""
    if values.dtype == np.uint8:
        return np.flatnonzero(np.bincount(values.ravel(), minlength=256)).astype(np.int64)
    return np.unique(values).astype(np.int64)


def _within(found: Values, count: int, *others: int) -> bool:
    return all(0 <= v < count or v in others for v in found.tolist())


def _outside(path: Path, found: Values, count: int) -> InputError:
    outside = [int(v) for v in found if not (0 <= v < count or v == UNLABELLED)]
    listed = ", ".join(str(v) for v in outside[:5]) + (", ..." if len(outside) > 5 else "")
    return InputError(
        f"{path.name} holds the value{'s' if len(outside) > 1 else ''} {listed}, but the classes "
        f"are 0 to {count - 1} ({UNLABELLED} for unlabelled); correct the mask or the classes."
    )


def _size(shape: tuple[int, ...]) -> str:
    size = f"{shape[-1]} x {shape[-2]}"
    return f"{shape[0]} planes of {size}" if len(shape) == 3 else size
