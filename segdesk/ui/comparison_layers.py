"""What napari shows of two models on the image on screen: changes, or a swipe between them."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from napari.layers import Labels, Layer
from napari.utils.colormaps import DirectLabelColormap

from segdesk.core.classes import ClassMap
from segdesk.session.comparing import Comparison
from segdesk.ui.layers import LARGE_OUTLINES, coarser
from segdesk.ui.legend import CHANGE_COLORS, class_colors

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from napari import Viewer

CHANGES: Final = "Changes"
SWIPE: Final = "Swipe"
#: Label of the line between the masks, which no class can have.
LINE: Final = 254
LINE_COLOR: Final = "white"
#: The line is one part in so many of the image wide, and a pixel at least.
LINE_SHARE: Final = 400
OPACITY: Final = 0.5


class ComparisonLayers:
    """Layers over the sample on screen, and the ones they hide while they are there.

    Labels and uncertainty of the sample are hidden meanwhile, since their colours would
    mix with those of the comparison; :meth:`clear` shows them again as they were.
    """

    def __init__(self, viewer: Viewer, classes: ClassMap) -> None:
        self._viewer = viewer
        self._classes = classes
        self._changes: Labels | None = None
        self._swipe: Labels | None = None
        self._sides: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]] | None = None
        #: What the swipe shows; its layer has this array, or views of it that get coarser.
        self._shown: npt.NDArray[np.uint8] | None = None
        self._column = 0
        self._hidden: list[Layer] = []

    @property
    def changes(self) -> Labels | None:
        """The layer of pixels fixed, broken and still wrong, while it is shown."""
        return self._changes

    @property
    def swipe(self) -> Labels | None:
        """The layer of both masks, while it is shown."""
        return self._swipe

    def show_changes(self, found: Comparison, below: Sequence[Layer | None]) -> None:
        """Show what became of each pixel instead of the layers ``below``."""
        self.clear()
        self._hide(below)
        colors: dict[int | None, Any] = {None: "transparent", 0: "transparent"}
        colors |= {int(change): color for change, color in CHANGE_COLORS.items()}
        self._changes = _labels(found.changes, CHANGES, colors, opacity=0.75)
        self._add(self._changes)

    def show_swipe(self, found: Comparison, column: int, below: Sequence[Layer | None]) -> None:
        """Show the first mask left of a column and the second from there on."""
        self.clear()
        self._hide(below)
        self._sides = found.first, found.second
        self._column = column
        colors: dict[int | None, Any] = {
            value: color * (1, 1, 1, OPACITY)
            for value, color in class_colors(self._classes).items()
        }
        colors[LINE] = LINE_COLOR
        self._shown = self._columns(0, found.first.shape[-1])
        self._swipe = _labels(self._shown, SWIPE, colors, opacity=1)
        self._add(self._swipe)

    def move_swipe(self, column: int) -> None:
        """Move the line; only the columns it passes over are written and drawn anew."""
        layer = self._swipe
        if layer is None or self._sides is None or self._shown is None:
            return
        low, high = min(self._column, column), max(self._column, column)
        low, high = max(0, low - self._width), min(self._shown.shape[-1], high + self._width)
        self._column = column
        self._shown[..., low:high] = self._columns(low, high)
        self._show_columns(layer, low, high)

    def clear(self) -> None:
        """Take the layers away and show those again that were hidden for them."""
        for layer in (self._changes, self._swipe):
            with suppress(ValueError):  # the user may have deleted it
                if layer is not None:
                    self._viewer.layers.remove(layer)
        self._changes = self._swipe = self._sides = self._shown = None
        for layer in self._hidden:
            layer.visible = True
        self._hidden = []

    # How ---------------------------------------------------------------------

    @property
    def _width(self) -> int:
        """Width of the line in pixels."""
        return max(1, self._sides[0].shape[-1] // LINE_SHARE) if self._sides is not None else 0

    def _columns(self, low: int, high: int) -> npt.NDArray[np.uint8]:
        """Return what the swipe shows of some columns; at the image's edges there is no line."""
        assert self._sides is not None
        first, second = self._sides
        between = min(max(self._column, low), high)
        shown = np.concatenate((first[..., low:between], second[..., between:high]), axis=-1)
        if 0 < self._column < first.shape[-1]:
            left = self._column - self._width // 2
            start, stop = (min(max(x, low), high) for x in (left, left + self._width))
            shown[..., start - low : stop - low] = LINE
        return shown

    def _show_columns(self, layer: Labels, low: int, high: int) -> None:
        """Bring some columns of the layer on screen.

        The event is what napari sends itself after a stroke of its brush: that part alone
        goes to the graphics card. Drawing the whole layer anew takes time by its size.
        """
        dims = self._viewer.dims
        before = dims.ndim - layer.ndim
        is_as_stored = tuple(dims.displayed) == (dims.ndim - 2, dims.ndim - 1)
        if dims.ndisplay != 2 or not is_as_stored or layer.multiscale:
            layer.refresh(thumbnail=False, highlight=False, extent=False)
            return
        planes = tuple(dims.current_step[before : dims.ndim - 2])
        layer.events.labels_update(data=layer.data[planes][:, low:high], offset=(0, low))

    def _hide(self, layers: Sequence[Layer | None]) -> None:
        self._hidden = [layer for layer in layers if layer is not None and layer.visible]
        for layer in self._hidden:
            layer.visible = False

    def _add(self, layer: Layer) -> None:
        """Add a layer without taking the selection from the one being painted on."""
        active = self._viewer.layers.selection.active
        self._viewer.add_layer(layer)
        if active is not None:
            self._viewer.layers.selection.active = active


def _labels(
    data: npt.NDArray[np.uint8], name: str, colors: dict[int | None, Any], opacity: float
) -> Labels:
    is_large = data.size > LARGE_OUTLINES
    layer = Labels(
        coarser(data) if is_large else data,
        name=name,
        opacity=opacity,
        colormap=DirectLabelColormap(color_dict=colors),
        multiscale=is_large,
    )
    layer.editable = False
    return layer
