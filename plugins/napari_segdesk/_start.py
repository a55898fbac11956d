"""From an open image layer to a project."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import tifffile
from napari.layers import Image
from qtpy.QtWidgets import QFileDialog, QVBoxLayout, QWidget

from segdesk.app.settings import data_folder
from segdesk.core.classes import BACKGROUND_COLOR, ClassDef, ClassMap
from segdesk.core.errors import InputError
from segdesk.io.atomic import explain_os_errors
from segdesk.session import models, projects
from segdesk.ui.bridge import notify, reporting
from segdesk.ui.widgets import ActionButton, ElidingCombo, Hint

if TYPE_CHECKING:
    from segdesk.ui.workbench import Workbench

NO_LAYER = "Open an image in napari first (File, Open), or drop one on the window."


class StartWidget(QWidget):
    """Offers to use the image layer that is open, or to open a project."""

    def __init__(self, workbench: Workbench) -> None:
        super().__init__()
        self._workbench = workbench
        self._used: list[Image] = []
        self.label = Hint("Model to start with, and the classes it knows:")
        self.model = ElidingCombo()
        for entry in models.list_models():
            self.model.addItem(f"{entry.name}: {', '.join(entry.card.classes)}", entry.name)
        self.model.setToolTip("The model to start with; its classes become the project's.")
        self.use = ActionButton("Use the open image layer", self.use_layer)
        self.hint = Hint()
        self.open = ActionButton("Open project…", self._ask_project)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (self.label, self.model, self.use, self.hint, self.open):
            column.addWidget(widget)
        events = workbench.viewer.layers.events
        for emitter in (events.inserted, events.removed, events.reordered):
            emitter.connect(self._update)
        workbench.viewer.layers.selection.events.active.connect(self._update)
        workbench.session_opened.connect(self._update)
        workbench.session_closed.connect(self._update)
        self._update()

    def use_layer(self) -> None:
        """Copy the image layer into a project, a new one if none is open.

        Raises
        ------
        InputError
            No image layer, or one with more axes than a stack.
        """
        layer = self._layer()
        if layer is None:
            raise InputError(NO_LAYER)
        pixels = layer_pixels(layer)
        if self._workbench.session is None:
            entry = models.find_model(str(self.model.currentData()))
            folder = free_folder(data_folder() / "projects", layer.name)
            self._workbench.new_project(folder, classes_of(entry))
        session = self._workbench.session
        if session is None:
            return
        target = free_file(session.store.folder / "images", layer.name)
        self._workbench.in_background(
            partial(write_image, target, pixels, is_rgb=layer.rgb),
            partial(self._add, layer, target),
        )

    def _add(self, layer: Image, target: Path, _written: None) -> None:
        session = self._workbench.session
        if session is None:
            return
        added = projects.add_images(session, [projects.NewImage(target)])
        for note in added.notes:
            notify(note)
        if added.samples:
            layer.visible = False
            self._used.append(layer)
            self._update()
            notify(f"A copy of “{layer.name}”, its masks and models are kept in "
                   f"{session.store.folder}")  # fmt: skip
            self._workbench.show_sample(added.samples[0].id)

    def _layer(self) -> Image | None:
        """Return the selected image layer, else the topmost one that is not SegDesk's."""
        stack = self._workbench.viewer.layers
        own = self._workbench.layers
        ours = [*self._used, *(own.all() if own is not None else [])]
        candidates = [stack.selection.active, *reversed(stack)]
        return next((x for x in candidates if isinstance(x, Image) and x not in ours), None)

    @reporting()
    def _update(self, _: object = None) -> None:
        is_open = self._workbench.session is not None
        if not is_open:
            self._used.clear()
        layer = self._layer()
        self.label.setVisible(not is_open)
        self.model.setVisible(not is_open)
        self.open.setVisible(not is_open)
        self.use.setVisible(not is_open or layer is not None)
        what = f"“{layer.name}”" if layer is not None else "the open image layer"
        self.use.setText(f"Add {what} to this project" if is_open else f"Use {what}")
        self.use.set_reason("" if layer is not None else NO_LAYER)
        self.hint.say("" if layer is not None or is_open else NO_LAYER)

    def _ask_project(self) -> None:
        start = str(self._workbench.last_folder)
        folder = QFileDialog.getExistingDirectory(self, "Open a SegDesk project folder", start)
        if folder:
            self._workbench.last_folder = Path(folder).parent
            self._workbench.open_project(Path(folder))


def classes_of(entry: models.ModelEntry) -> ClassMap:
    """Return the classes of a model, with its colours, as a project's."""
    colors = (BACKGROUND_COLOR, *entry.card.colors[1:])
    named = zip(entry.card.classes, colors, strict=True)
    return ClassMap(tuple(ClassDef(i, name, color) for i, (name, color) in enumerate(named)))


def layer_pixels(layer: Image) -> npt.NDArray[Any]:
    """Return a layer's pixels, (Y, X) or (Z, Y, X), channels last for RGB.

    Raises
    ------
    InputError
        The layer has more axes than a stack has.
    """
    data = np.asarray(layer.data[0] if layer.multiscale else layer.data)
    if data.ndim - int(layer.rgb) not in (2, 3):
        raise InputError(
            f"“{layer.name}” has {data.ndim} axes, but SegDesk takes a single image or a stack; "
            "use Layers, Data, Split Stack first."
        )
    if data.dtype == np.bool_:
        return data.astype(np.uint8)
    if data.dtype.kind == "f":
        return data.astype(np.float32)
    if data.dtype.itemsize > 4:
        return data.astype(np.float32)
    return data


def write_image(target: Path, pixels: npt.NDArray[Any], *, is_rgb: bool) -> None:
    """Write pixels as a TIFF with its axes named.

    Raises
    ------
    InputError
        The disk is full or read-only.
    """
    axes = {2: "YX", 3: "ZYX"}[pixels.ndim - int(is_rgb)] + ("S" if is_rgb else "")
    with explain_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(
            target,
            pixels,
            photometric="rgb" if is_rgb else "minisblack",
            compression="zlib",
            metadata={"axes": axes},
        )


def free_folder(parent: Path, name: str) -> Path:
    """Return a path for a new project, named after a layer."""
    return _free(parent, name, ".segdesk")


def free_file(parent: Path, name: str) -> Path:
    """Return a path for a new image, named after a layer."""
    return _free(parent, name, ".tif")


def _free(parent: Path, name: str, suffix: str) -> Path:
    stem = re.sub(r"[^\w-]+", "-", name).strip("-")[:60] or "image"
    path, number = parent / f"{stem}{suffix}", 1
    while path.exists():
        number += 1
        path = parent / f"{stem}-{number}{suffix}"
    return path
