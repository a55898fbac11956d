"""What napari shows of two models on the image on screen: changes, or a swipe between them."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from napari.layers import Labels, Layer, Vectors
from napari.utils.colormaps import DirectLabelColormap

from segdesk.core.classes import ClassMap
from segdesk.session.comparing import Comparison
from segdesk.ui.legend import CHANGE_COLORS, class_colors

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from napari import Viewer

CHANGES: Final = "Changes"
SWIPE: Final = "Swipe"
LINE: Final = "Swipe line"
LINE_COLOR: Final = "white"


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
        self._line: Vectors | None = None
        self._sides: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]] | None = None
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
        both = np.concatenate((found.first[..., :column], found.second[..., column:]), axis=-1)
        self._swipe = _labels(both, SWIPE, dict(class_colors(self._classes)), opacity=0.5)
        self._add(self._swipe)
        rows = both.shape[-2]
        self._line = Vectors(
            _line(column, rows),
            name=LINE,
            edge_color=LINE_COLOR,
            edge_width=max(1.0, both.shape[-1] / 400),
            vector_style="line",
        )
        self._add(self._line)

    def move_swipe(self, column: int) -> None:
        """Move the line; only the columns it passes over are written anew."""
        if self._swipe is None or self._sides is None or self._line is None:
            return
        low, high = sorted((self._column, column))
        side = self._sides[0] if column > self._column else self._sides[1]
        self._swipe.data[..., low:high] = side[..., low:high]
        self._column = column
        self._swipe.refresh(thumbnail=False, highlight=False, extent=False)
        self._line.data = _line(column, self._swipe.data.shape[-2])

    def clear(self) -> None:
        """Take the layers away and show those again that were hidden for them."""
        for layer in (self._changes, self._swipe, self._line):
            with suppress(ValueError):  # the user may have deleted it
                if layer is not None:
                    self._viewer.layers.remove(layer)
        self._changes = self._swipe = self._line = self._sides = None
        for layer in self._hidden:
            layer.visible = True
        self._hidden = []

    # How ---------------------------------------------------------------------

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
    layer = Labels(
        data, name=name, opacity=opacity, colormap=DirectLabelColormap(color_dict=colors)
    )
    layer.editable = False
    return layer


def _line(column: int, rows: int) -> npt.NDArray[np.float32]:
    """Return a vector (1, 2, 2) down the left edge of a column; a pixel's centre is whole."""
    return np.array([[[-0.5, column - 0.5], [rows, 0]]], np.float32)
