from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from segdesk.core.errors import InputError
from segdesk.inference.tiling import Blender, TilePlan, pad, plan, window

lengths = st.integers(1, 90)


@st.composite
def plans(draw: st.DrawFn) -> TilePlan:
    stride = draw(st.sampled_from([1, 2, 8, 16, 32]))
    tile = stride * draw(st.integers(1, max(1, 64 // stride)))
    overlap = draw(st.integers(0, tile - 1))
    shape = (draw(lengths), draw(lengths))
    assume((max(shape) + overlap) // (tile - overlap) < 60)
    return plan(shape, tile, overlap, stride)


def blend(tiling: TilePlan, image: np.ndarray) -> np.ndarray:
    """Send an image, (Y, X, C) float32, through tiles as a network that returns its input."""
    padded = pad(image, tiling)
    assert padded.shape[:2] == tiling.padded
    blender = Blender(tiling, image.shape[2])
    height, width = tiling.size
    for tile in tiling.tiles:
        crop = padded[tile.y : tile.y + height, tile.x : tile.x + width]
        assert crop.shape[:2] == tiling.size
        blender.add(tile, crop.transpose(2, 0, 1))
    return blender.result().transpose(1, 2, 0)


@settings(max_examples=150, deadline=None)
@given(tiling=plans(), seed=st.integers(0, 2**32 - 1))
def test_blended_tiles_of_an_image_are_the_image(tiling: TilePlan, seed: int) -> None:
    """So every pixel is covered, lies where it was, and counts with weights above 0."""
    image = np.random.default_rng(seed).random((*tiling.shape, 2), np.float32)
    np.testing.assert_allclose(blend(tiling, image), image, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(tiling=plans(), value=st.floats(0, 1, width=32))
def test_a_constant_network_stays_constant(tiling: TilePlan, value: float) -> None:
    blender = Blender(tiling, 1)
    for tile in tiling.tiles:
        blender.add(tile, np.full((1, *tiling.size), value, np.float32))
    result = blender.result()
    assert result.shape == (1, *tiling.shape)
    np.testing.assert_allclose(result, value, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(stride=st.sampled_from([1, 16, 32]), factor=st.integers(1, 4), overlap=st.integers(0, 31),
       height=lengths, width=lengths)  # fmt: skip
def test_every_tile_fits_the_network(
    stride: int, factor: int, overlap: int, height: int, width: int
) -> None:
    tile = stride * factor
    assume(overlap < tile and (90 + overlap) // (tile - overlap) < 100)
    tiling = plan((height, width), tile, overlap, stride)
    assert all(length % stride == 0 and length <= tile for length in tiling.size)
    assert len(set(tiling.tiles)) == len(tiling.tiles)


def test_a_plane_that_fits_is_one_tile_of_its_own_size() -> None:
    tiling = plan((50, 20), 512, 0, 16)
    assert tiling.size == (64, 32)
    assert len(tiling.tiles) == 1


def test_borders_are_mirrored() -> None:
    tiling = plan((3, 3), 16, 4, 1)
    padded = pad(np.arange(9, dtype=np.float32).reshape(3, 3, 1), tiling)[..., 0]
    assert padded[2:5, :5].tolist() == [[2, 1, 0, 1, 2], [5, 4, 3, 4, 5], [8, 7, 6, 7, 8]]
    assert padded[:2, 2].tolist() == [6, 3]


@settings(max_examples=50)
@given(height=st.integers(1, 600), width=st.integers(1, 600))
def test_weights_are_positive_and_largest_in_the_middle(height: int, width: int) -> None:
    weights = window((height, width))
    assert weights.shape == (height, width)
    assert weights.min() > 0
    assert weights.argmax() in {
        y * width + x
        for y in ((height - 1) // 2, height // 2)
        for x in ((width - 1) // 2, width // 2)
    }
    np.testing.assert_allclose(weights, weights[::-1, ::-1])


@pytest.mark.parametrize(("size", "nearest"), [(100, 96), (120, 128), (3, 16)])
def test_a_tile_that_does_not_fit_names_the_nearest(size: int, nearest: int) -> None:
    with pytest.raises(InputError, match=f"multiples of 16; the nearest is {nearest}"):
        plan((50, 50), size, 0, 16)


def test_an_overlap_as_large_as_the_tile_is_refused() -> None:
    with pytest.raises(InputError, match=r"leaves nothing of tiles of 64; choose at most 32"):
        plan((500, 500), 64, 64, 16)
