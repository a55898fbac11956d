from __future__ import annotations

import napari
import numpy as np
import pytest
from napari.components import ViewerModel

from segdesk.core.classes import UNLABELLED, ClassMap
from segdesk.ui.layers import SampleLayers, displayable


@pytest.fixture
def viewer() -> napari.components.ViewerModel:
    return ViewerModel()


@pytest.fixture
def layers(viewer: ViewerModel) -> SampleLayers:
    return SampleLayers(viewer, ClassMap.from_names(("background", "nucleus", "debris")))


def image(channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (32, 48, channels)).astype(dtype)


def names(viewer: ViewerModel) -> list[str]:
    return [layer.name for layer in viewer.layers]


def test_layers_lie_in_order_and_labels_are_selected(
    viewer: ViewerModel, layers: SampleLayers
) -> None:
    layers.show(image(), np.zeros((32, 48), np.uint8))
    layers.set_reference(np.ones((32, 48), np.uint8))
    layers.set_uncertainty(np.zeros((32, 48), np.float32))
    assert names(viewer) == ["Image", "Uncertainty", "Labels", "Reference"]
    assert viewer.layers.selection.active is layers.labels
    assert not viewer.layers["Reference"].visible


def test_class_colours_with_clear_background_and_grey_unlabelled(layers: SampleLayers) -> None:
    layers.show(image(), np.zeros((32, 48), np.uint8))
    assert layers.labels is not None
    color = layers.labels.get_color
    assert color(0) is None or color(0)[3] == 0
    np.testing.assert_allclose(color(1)[:3] * 255, (0x56, 0xB4, 0xE9), atol=1)
    assert np.ptp(color(UNLABELLED)[:3]) < 0.01


def test_a_prediction_moves_neither_camera_nor_tool_nor_the_stroke_in_hand(
    viewer: ViewerModel, layers: SampleLayers
) -> None:
    before = np.zeros((32, 48), np.uint8)
    layers.show(image(), before)
    assert layers.labels is not None
    layers.labels.mode, layers.labels.brush_size = "paint", 5
    layers.labels.selected_label = 2
    viewer.scene.camera.zoom, viewer.scene.camera.center = 3, (0, 5, 6)
    data = layers.labels.data
    data[3, 3] = 2  # painted, the mouse button still down
    layers.replace_labels(before, np.ones_like(before))
    layers.set_uncertainty(np.full((32, 48), 0.5, np.float32))
    assert layers.labels.data is data
    assert (data[3, 3], data[4, 4]) == (2, 1)
    assert (str(layers.labels.mode), layers.labels.brush_size) == ("paint", 5)
    assert layers.labels.selected_label == 2
    assert viewer.scene.camera.zoom == 3
    assert viewer.scene.camera.center == (0, 5, 6)


def test_tool_and_opacity_stay_when_another_kind_of_image_comes(
    viewer: ViewerModel, layers: SampleLayers
) -> None:
    layers.show(image(), np.zeros((32, 48), np.uint8))
    labels = layers.labels
    assert labels is not None
    labels.mode, labels.opacity = "paint", 0.9
    layers.set_uncertainty(np.zeros((32, 48), np.float32))
    layers.show(image(1, np.uint16), np.zeros((32, 48), np.uint8))
    assert names(viewer) == ["Image", "Labels"]
    assert layers.labels is labels
    assert (str(labels.mode), labels.opacity) == ("paint", 0.9)


def test_removing_leaves_the_layers_of_others(viewer: ViewerModel, layers: SampleLayers) -> None:
    viewer.add_image(np.zeros((8, 8)), name="mine")
    layers.show(image(), np.zeros((32, 48), np.uint8))
    viewer.layers.remove("Image")  # the user may
    layers.remove()
    assert names(viewer) == ["mine"]


@pytest.mark.parametrize(
    ("channels", "dtype", "is_rgb"),
    [(1, np.uint8, False), (1, np.int16, False), (3, np.uint8, True), (3, np.uint16, True),
     (2, np.uint8, True), (5, np.float32, True)],
)  # fmt: skip
def test_every_kind_of_image_can_be_drawn(channels: int, dtype: type, is_rgb: bool) -> None:
    data, rgb, (low, high) = displayable(image(channels, dtype))
    assert rgb is is_rgb
    assert data.shape == ((32, 48, 3) if is_rgb else (32, 48))
    assert low < high
    assert data.dtype == (np.uint8 if is_rgb else dtype)
    if is_rgb:
        assert data.max() > 150
