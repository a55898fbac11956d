"""Large labels on screen: the layer that is painted on holds only what is in view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    from napari.components import Dims
    from napari.layers import Image, Labels

    LabelArray = npt.NDArray[np.uint8]
    Box = tuple[slice, ...]

#: Painting with more pixels of the image to one on screen would be guessing.
COARSEST_PAINTED: Final = 4


class LabelWindow:
    """Keeps a layer at the part of the labels that the image's layer shows.

    The layer's array is a copy of that part, of every ``step``-th pixel while the user
    looks from afar. Of a stack it is one plane.

    Parameters
    ----------
    layer
        What is painted on.
    image
        The image's layer, multiscale: where it is, the labels are.
    dims
        The viewer's: which plane of a stack is on screen.
    labels
        All labels, uint8 (Y, X) or (Z, Y, X); read only.
    """

    def __init__(self, layer: Labels, image: Image, dims: Dims, labels: LabelArray) -> None:
        self._layer, self._image, self._dims, self.labels = layer, image, dims, labels
        self.step = 0
        self.start: tuple[int, ...] = ()
        self._stop: tuple[int, ...] = ()
        #: What the labels said when they were last brought to the layer.
        self._before: LabelArray = np.zeros(0, np.uint8)
        image.events.set_data.connect(self.follow)
        self.follow()

    def close(self) -> None:
        """Follow no more; the layer lies as layers do."""
        self._image.events.set_data.disconnect(self.follow)
        self._layer.scale = (1,) * self._layer.ndim
        self._layer.translate = (0,) * self._layer.ndim

    @property
    def box(self) -> Box:
        """The part of the labels as an index; each pixel of the layer is one of it."""
        steps = (*(1 for _ in self.start[:-2]), self.step, self.step)
        return tuple(slice(*side) for side in zip(self.start, self._stop, steps, strict=True))

    def follow(self, _event: Any = None) -> None:
        """Go where the image is, if that is elsewhere by now."""
        image = self._image
        step = max(1, round(float(image.downsample_factors[image.data_level][-1])))
        corners = image.corner_pixels[:, -2:] * step
        limits = self.labels.shape[-2:]
        *stack, top, left = (0,) * (self.labels.ndim - 2) + tuple(
            min(max(0, int(c)), n - 1) for c, n in zip(corners[0], limits, strict=True)
        )
        bottom, right = (
            min(max(int(c) + step, first + 1), n)
            for c, first, n in zip(corners[1], (top, left), limits, strict=True)
        )
        if stack:
            stack = [min(max(0, int(self._dims.current_step[-3])), len(self.labels) - 1)]
        start = (*stack, top, left)
        stop = (*(z + 1 for z in stack), bottom, right)
        if (start, stop, step) == (self.start, self._stop, self.step):
            return
        self.start, self._stop, self.step = start, stop, step
        self._before = self.labels[self.box].copy()
        layer = self._layer
        if layer.data.shape == self._before.shape:  # half the work of an array of its own
            np.copyto(layer.data, self._before)
        else:
            layer.data = self._before.copy()
        scale = (*(1.0 for _ in stack), float(step), float(step))
        if tuple(layer.scale) != scale:
            layer.scale = scale
        middle = (step - 1) / 2
        place = (*(float(z) for z in stack), top + middle, left + middle)
        if tuple(layer.translate) != place:
            layer.translate = place
        else:
            layer.refresh(extent=False)

    def seen(self, corners: tuple[int, int, int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return first and last pixel of the image of a part of the layer, rows before columns."""
        top, left, bottom, right = corners
        y, x = self.start[-2:]
        last = (self.step - 1) if self.step > 1 else 0
        return (
            (y + top * self.step, x + left * self.step),
            (min(y + bottom * self.step + last, self.labels.shape[-2] - 1),
             min(x + right * self.step + last, self.labels.shape[-1] - 1)),
        )  # fmt: skip

    def bring(self) -> None:
        """Bring what the labels say now; what differs is a stroke in hand and stays."""
        data, now = self._layer.data, self.labels[self.box]
        np.copyto(data, now, where=data == self._before)
        self._before = now.copy()
        self._layer.refresh(extent=False)

    def write_back(self, box: Box) -> None:
        """Show what the labels say in a box of them, whatever the layer showed there."""
        inner = self.within(box)
        if inner is not None:
            now = self.labels[self.box][inner]
            self._layer.data[inner] = now
            self._before[inner] = now
            self._layer.refresh(extent=False)

    def keep(self, box: Box) -> None:
        """Take note that a stroke in a box of the labels is theirs by now."""
        inner = self.within(box)
        if inner is not None:
            self._before[inner] = self.labels[self.box][inner]

    def within(self, box: Box) -> Box | None:
        """Return a box of the labels as an index into the layer; None if it is out of view."""
        steps = (*(1 for _ in self.start[:-2]), self.step, self.step)
        inner = tuple(
            slice(max(0, -(-(side.start - first) // step)),
                  min(length, -(-(side.stop - first) // step)))
            for side, first, step, length in zip(
                box, self.start, steps, self._layer.data.shape, strict=True)
        )  # fmt: skip
        return inner if all(side.start < side.stop for side in inner) else None

    def whole(self, box: Box) -> Box:
        """Return a box of the layer as one of the labels."""
        steps = (*(1 for _ in self.start[:-2]), self.step, self.step)
        return tuple(
            slice(first + side.start * step, min(first + side.stop * step, length))
            for side, first, step, length in zip(
                box, self.start, steps, self.labels.shape, strict=True)
        )  # fmt: skip

    def painted(self, box: Box, after: LabelArray) -> LabelArray:
        """Return labels of :meth:`whole` of a box after it was painted ``after`` in the layer.

        Looked at from afar, what was painted covers all the pixels that one stands for.
        """
        shown = self.labels[self.box][box]
        result = self.labels[self.whole(box)].copy()
        changed, value = after != shown, after
        for axis in (-2, -1):
            changed, value = (np.repeat(part, self.step, axis) for part in (changed, value))
        cut = tuple(slice(0, n) for n in result.shape)
        np.copyto(result, value[cut], where=changed[cut])
        return result

    def spread(self, mask: npt.NDArray[np.bool_], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        """Return a mask of pixels of the layer as one of labels, cut to ``shape``."""
        for axis in (-2, -1):
            mask = np.repeat(mask, self.step, axis)
        return mask[tuple(slice(0, n) for n in shape)]
