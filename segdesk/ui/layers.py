"""What napari shows of one sample: image, uncertainty, labels, reference."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from napari.layers import Image, Labels, Layer
from napari.utils.colormaps import Colormap, DirectLabelColormap

from segdesk.core.classes import ClassMap
from segdesk.ui.label_window import LabelWindow
from segdesk.ui.legend import (
    REFERENCE_COLOR,
    REFINED_COLOR,
    UNCERTAINTY_RGBA,
    UNCERTAINTY_STOPS,
    class_colors,
)

if TYPE_CHECKING:
    from napari import Viewer

    LabelArray = npt.NDArray[np.uint8]

IMAGE: Final = "Image"
UNCERTAINTY: Final = "Uncertainty"
LABELS: Final = "Labels"
REFERENCE: Final = "Reference"
REFINED: Final = "Refined (preview)"
#: Views of large arrays end where they are so small, in pixels a side.
COARSEST_SIDE: Final = 1024
#: Outlines and comparisons of more pixels are drawn only where they are on screen.
LARGE_OUTLINES: Final = 16 * 2**20


class SampleLayers:
    """The layers of the sample on screen; others in the viewer are left alone.

    Layers are kept from sample to sample, so that tool, brush, opacity and
    visibility stay as the user set them.

    Parameters
    ----------
    viewer
        Where to show them.
    classes
        The project's classes.
    """

    def __init__(self, viewer: Viewer, classes: ClassMap) -> None:
        self._viewer = viewer
        self._classes = classes
        self._image: Image | None = None
        self._uncertainty: Image | None = None
        self._labels: Labels | None = None
        self._reference: Labels | None = None
        self._refined: Labels | None = None
        self._shape: tuple[int, ...] = ()
        self._window: LabelWindow | None = None
        #: How the user paints, for a layer that takes the place of another.
        self._habits: dict[str, Any] = {}
        #: Uncertainty of a large image, 0 to 1 as 0 to 255.
        self._unsure: LabelArray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the sample on screen, (Y, X) or (Z, Y, X)."""
        return self._shape

    @property
    def window(self) -> LabelWindow | None:
        """What part of large labels the layer holds; None where it holds all."""
        return self._window

    @property
    def labels(self) -> Labels | None:
        """The layer that is painted on."""
        return self._labels

    @property
    def uncertainty(self) -> Image | None:
        """The layer of the model's uncertainty."""
        return self._uncertainty

    @property
    def reference(self) -> Labels | None:
        """The layer of the true mask; None for samples without one."""
        return self._reference

    @property
    def refined(self) -> Labels | None:
        """The layer of refined labels that are not in use yet."""
        return self._refined

    def all(self) -> list[Layer]:
        """Return the layers that are SegDesk's."""
        own = (self._image, self._uncertainty, self._labels, self._reference, self._refined)
        return [layer for layer in own if layer is not None]

    def show(self, image: npt.NDArray[Any], labels: LabelArray) -> None:
        """Show a sample's image, (..., Y, X, C), and a copy of its labels.

        Uncertainty, reference and preview of the sample before are taken away.
        """
        self._clear(labels.shape)
        self._show_image(*displayable(image))
        self._show_labels(labels.copy())
        self._viewer.reset_view()

    def show_large(
        self, levels: Sequence[Any], limits: tuple[float, float] | None, labels: LabelArray
    ) -> None:
        """Show a large sample, of which only what is on screen is read, and its labels.

        Parameters
        ----------
        levels
            Arrays of the image, finest first, with colours last; see :mod:`segdesk.ui.tiles`.
        limits
            Range of values that is shown of a grey image; None for colours.
        labels
            All labels; the layer gets copies of what is on screen.
        """
        self._clear(labels.shape, is_large=True)
        self._show_image(levels, limits is None, limits or (0, 255), multiscale=True)
        layer = self._show_labels(np.zeros((1,) * labels.ndim, np.uint8))
        self._viewer.reset_view()
        if self._image is not None:
            self._window = LabelWindow(layer, self._image, self._viewer.dims, labels)

    def draw_image(self) -> None:
        """Draw what was read of a large image since."""
        if self._image is not None:
            self._image.refresh(highlight=False, extent=False)

    def bring_labels(self, labels: LabelArray) -> None:
        """Show what large labels say now; a stroke in hand stays."""
        if self._window is not None:
            self._window.labels = labels
            self._window.bring()

    def replace_labels(self, before: LabelArray, after: LabelArray) -> None:
        """Write new label values into the layer's own array, in place.

        Pixels that differ from ``before`` belong to a stroke in hand and stay.
        """
        if self._window is not None:
            self.bring_labels(after)
        elif self._labels is not None:
            data = self._labels.data
            np.copyto(data, after, where=data == before)
            self._labels.refresh()

    def put_part(
        self, start: tuple[int, ...], before: LabelArray, after: LabelArray, unsure: LabelArray
    ) -> None:
        """Write a part of a prediction into the layers; :meth:`draw_parts` shows it.

        Parameters
        ----------
        start
            First corner of the part.
        before, after
            Its labels; see :meth:`replace_labels`.
        unsure
            uint8, uncertainty 0 to 1 as 0 to 255.
        """
        if self._labels is None:
            return
        box = tuple(slice(s, s + n) for s, n in zip(start, after.shape, strict=True))
        if self._window is not None:
            if self._unsure is None:
                self.set_large_uncertainty(np.zeros(self._shape, np.uint8))
            if self._unsure is not None:
                self._unsure[box] = unsure
            return
        shown = self._labels.data[box]
        np.copyto(shown, after, where=shown == before)
        if self._uncertainty is None:
            self.set_uncertainty(np.zeros(self._labels.data.shape, np.float32))
        if self._uncertainty is not None:
            self._uncertainty.data[box] = unsure.astype(np.float32) / 255

    def draw_parts(self) -> None:
        """Draw what :meth:`put_part` has written."""
        if self._window is not None:
            self._window.bring()
            if self._uncertainty is not None:
                self._uncertainty.refresh(extent=False)
            return
        for layer in (self._labels, self._uncertainty):
            if layer is not None:
                layer.refresh()

    def set_uncertainty(self, values: npt.NDArray[np.float32], guessing: float = 1.0) -> None:
        """Show uncertainty, 0 to 1; ``guessing`` and above in the last colour."""
        if self._uncertainty is not None:
            self._uncertainty.data = values
            self._uncertainty.contrast_limits = (0, guessing)
            return
        self._add_uncertainty(values, 1, guessing, multiscale=False)

    def set_large_uncertainty(self, values: LabelArray, guessing: float = 1.0) -> None:
        """Show the uncertainty of a large image, 0 to 1 as 0 to 255."""
        self._unsure = values
        if self._uncertainty is not None:
            self._uncertainty.data = coarser(values)
            self._uncertainty.contrast_limits = (0, 255 * guessing)
            return
        self._add_uncertainty(coarser(values), 255, guessing, multiscale=True)

    def _add_uncertainty(self, data: Any, top: int, guessing: float, *, multiscale: bool) -> None:
        self._uncertainty = Image(
            data,
            name=UNCERTAINTY,
            colormap=uncertainty_colormap(),
            contrast_limits=(0, top * guessing),
            blending="translucent",
            opacity=0.7,
            multiscale=multiscale,
        )
        self._uncertainty.contrast_limits_range = (0, top)
        self._insert(self._uncertainty, below=self._labels)

    def set_reference(self, labels: LabelArray) -> None:
        """Keep the true mask ready as outlines, hidden."""
        self._remove(self._reference)
        self._reference = _outlines(labels, REFERENCE, REFERENCE_COLOR)
        self._reference.visible = False
        self._insert(self._reference, below=None)

    def set_refined(self, labels: LabelArray | None) -> None:
        """Show the outlines of refined labels over everything; None takes them away."""
        self._remove(self._refined)
        self._refined = None
        if labels is not None:
            self._refined = _outlines(labels, REFINED, REFINED_COLOR)
            self._insert(self._refined, below=None)

    def remove(self) -> None:
        """Take all of SegDesk's layers away."""
        self._clear(())
        self._remove(*self.all())
        self._image = self._uncertainty = self._labels = self._reference = self._refined = None

    # How ---------------------------------------------------------------------

    def _clear(self, shape: tuple[int, ...], *, is_large: bool = False) -> None:
        """Make room for a sample of this shape."""
        was_large = self._window is not None
        if self._window is not None:
            self._window.close()
        self._window = self._unsure = None
        self._remove(self._uncertainty, self._reference)
        self.set_refined(None)
        self._uncertainty = self._reference = None
        is_alike = len(shape) == len(self._shape) == 2 or (
            shape == self._shape and not was_large and not is_large
        )
        if self._labels is not None and not is_alike:
            # Sliders come, go and change while the layers of a stack are put in or taken away,
            # and Qt has the canvas drawn at once then: a layer of the sample before that is
            # still to be seen can crash the graphics driver.
            self._habits = _habits_of(self._labels)
            for layer in (self._labels, self._image):
                if layer is not None:
                    layer.visible = False
            self._remove(self._labels, self._image)
            self._image = self._labels = None
        self._shape = shape

    def _show_labels(self, labels: LabelArray) -> Labels:
        layer = self._labels
        if layer is None:
            layer = self._labels = Labels(
                labels,
                name=LABELS,
                opacity=0.5,
                colormap=DirectLabelColormap(color_dict=class_colors(self._classes)),
            )
            layer.brush_size = 12
            for name, value in self._habits.items():
                setattr(layer, name, value)
            self._insert(layer, below=None)
        else:
            layer.data = labels
        layer.contiguous = True
        self._viewer.layers.selection.active = layer
        return layer

    def _show_image(
        self, data: Any, is_rgb: bool, limits: tuple[float, float], *, multiscale: bool = False
    ) -> None:
        known = self._image
        is_alike = known is not None and (known.rgb, known.multiscale) == (is_rgb, multiscale)
        if self._image is not None and is_alike and not multiscale:
            self._image.data = data
            if not is_rgb:
                self._image.contrast_limits_range = limits
                self._image.contrast_limits = limits
            return
        self._remove(self._image)
        extra = {} if is_rgb else {"contrast_limits": limits, "colormap": "gray"}
        self._image = Image(data, rgb=is_rgb, name=IMAGE, multiscale=multiscale, **extra)
        self._insert(self._image, below=self._labels)

    def _insert(self, layer: Layer, below: Layer | None) -> None:
        """Add a layer without taking the selection from the one being painted on."""
        active = self._viewer.layers.selection.active
        layers = self._viewer.layers
        index = layers.index(below) if below is not None and below in layers else len(layers)
        # A stack brings a slider, for which Qt draws the canvas at once: before napari has
        # sliced the new layer, whose empty texture crashes some graphics drivers.
        is_visible, layer.visible = layer.visible, False
        layers.insert(index, layer)
        layer.visible = is_visible
        if active is not None and active in layers:
            layers.selection.active = active

    def _remove(self, *gone: Layer | None) -> None:
        for layer in gone:
            with suppress(ValueError):  # the user may have deleted it
                if layer is not None:
                    self._viewer.layers.remove(layer)


def _habits_of(layer: Labels) -> dict[str, Any]:
    names = ("brush_size", "selected_label", "opacity", "contour", "preserve_labels", "visible")
    habits = {name: getattr(layer, name) for name in names}
    return habits | ({"mode": layer.mode} if layer.visible else {})


def _outlines(labels: LabelArray, name: str, color: str) -> Labels:
    """Make a layer that shows labels as outlines of one colour and cannot be painted on."""
    colors: dict[int | None, Any] = {None: color, 0: "transparent"}
    is_large = labels.size > LARGE_OUTLINES
    layer = Labels(
        coarser(labels) if is_large else labels,
        name=name,
        opacity=1.0,
        colormap=DirectLabelColormap(color_dict=colors),
        multiscale=is_large,
    )
    layer.contour = 2
    layer.editable = False
    return layer


def coarser(values: LabelArray) -> list[LabelArray]:
    """Return views of an array for napari, each with half the pixels a side; no copies."""
    levels = [values]
    while max(levels[-1].shape[-2:]) > COARSEST_SIDE:
        levels.append(levels[-1][..., ::2, ::2])
    return levels


def uncertainty_colormap() -> Colormap:
    """Return the colours of the uncertainty, the same as in the legend."""
    return Colormap(
        np.array(UNCERTAINTY_RGBA), controls=np.array(UNCERTAINTY_STOPS), name="segdesk-uncertainty"
    )


def displayable(image: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], bool, tuple[float, float]]:
    """Return what napari draws: data, whether it is RGB, and contrast limits.

    One channel stays as it is. Three of uint8 are taken as colours; of other
    types or numbers of channels the first three are stretched to uint8.
    """
    low, high = limits_of(image)
    channels = image.shape[-1]
    if channels == 1:
        return image[..., 0], False, (low, high)
    if channels == 3 and image.dtype == np.uint8:
        return image, True, (0, 255)
    return to_colors(image, (low, high)), True, (0, 255)


def to_colors(image: npt.NDArray[Any], limits: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Return (..., 3) uint8 of an image of several channels; see :func:`displayable`."""
    if image.shape[-1] == 3 and image.dtype == np.uint8:
        as_they_are: npt.NDArray[np.uint8] = image
        return as_they_are
    low, high = limits
    shown = image[..., :3].astype(np.float32)
    stretched: npt.NDArray[np.uint8]
    stretched = np.clip((shown - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
    if stretched.shape[-1] == 2:
        empty = np.zeros((*stretched.shape[:-1], 1), np.uint8)
        stretched = np.concatenate((stretched, empty), axis=-1)
    return stretched


def limits_of(image: npt.NDArray[Any]) -> tuple[float, float]:
    """Return the 0.5th and 99.8th percentile, of a million pixels at most."""
    step = max(1, int(np.sqrt(image.size / 1e6)))
    low, high = np.percentile(image[..., ::step, ::step, :].astype(np.float32), (0.5, 99.8))
    return float(low), float(max(high, low + 1e-6))
