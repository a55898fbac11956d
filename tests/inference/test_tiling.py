from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from segdesk.core.errors import InputError
from segdesk.inference.tiling import Blender, Box, Sides, TilePlan, mirrored, plan
from segdesk_models.unet2015 import UNet2015

lengths = st.integers(1, 90)


@st.composite
def plans(draw: st.DrawFn) -> TilePlan:
    stride = draw(st.sampled_from([1, 2, 8, 16, 32]))
    tile = stride * draw(st.integers(1, max(1, 64 // stride)))
    overlap = draw(st.integers(0, tile - stride))
    shape = (draw(lengths), draw(lengths))
    assume(max(shape) / ((tile - overlap) // stride * stride) < 40)
    return plan(shape, tile, overlap, Sides(stride))


@st.composite
def exact_plans(draw: st.DrawFn) -> TilePlan:
    sides = Sides(
        draw(st.sampled_from([2, 16])), draw(st.integers(1, 20)), draw(st.integers(1, 40))
    )
    shape = (draw(lengths), draw(lengths))
    tile = draw(st.integers(1, 100))
    assume(sides.down(tile) - sides.down(tile) % sides.stride >= sides.stride)
    return plan(shape, tile, 64, sides)


def run(
    tiling: TilePlan, image: np.ndarray, network: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Send an image (Y, X, C) through tiles; returns maps and how often each pixel came."""
    maps = np.full((image.shape[2], *tiling.shape), np.nan, np.float32)
    times = np.zeros(tiling.shape, int)

    def keep(box: Box, part: np.ndarray) -> None:
        maps[:, *box.slices] = part
        times[box.slices] += 1

    blender = Blender(tiling, keep)
    for tile in tiling.tiles:
        box = tiling.input_box(tile)
        crop = mirrored(lambda r, c: image[r, c], tiling.shape, box)
        assert crop.shape[:2] == tiling.input_size
        blender.add(tile, network(crop.transpose(2, 0, 1)))
    return maps, times


def middle(tiling: TilePlan) -> Callable[[np.ndarray], np.ndarray]:
    """A network that returns its input, less what unpadded convolutions lose."""
    n = tiling.context
    return lambda x: x[:, n : x.shape[1] - n, n : x.shape[2] - n]


@settings(max_examples=150, deadline=None)
@given(tiling=st.one_of(plans(), exact_plans()), seed=st.integers(0, 2**32 - 1))
def test_blended_tiles_of_an_image_are_the_image(tiling: TilePlan, seed: int) -> None:
    """Every pixel is covered, lies where it was, comes once, and its weights sum to one."""
    image = np.random.default_rng(seed).random((*tiling.shape, 2), np.float32)
    maps, times = run(tiling, image, middle(tiling))
    assert (times == 1).all()
    np.testing.assert_allclose(maps.transpose(1, 2, 0), image, atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(tiling=plans())
def test_weights_sum_to_one_and_grow_towards_the_middle(tiling: TilePlan) -> None:
    for axis in (tiling.rows, tiling.columns):
        total = np.zeros(axis.length)
        for start, weights in zip(axis.starts, axis.weights, strict=True):
            inside = slice(max(0, -start), min(axis.size, axis.length - start))
            total[max(0, start) : start + axis.size] += weights[inside]
            assert weights.min() > 0
            assert weights.argmax() == pytest.approx((axis.size - 1) / 2, abs=axis.size / 2)
        np.testing.assert_allclose(total, 1, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(stride=st.sampled_from([1, 16, 32]), factor=st.integers(2, 4), overlap=st.integers(0, 31),
       length=lengths)  # fmt: skip
def test_tiles_fit_the_network_and_begin_multiples_of_its_stride_apart(
    stride: int, factor: int, overlap: int, length: int
) -> None:
    """A network that pools sees the same pairs of pixels in every tile."""
    assume(overlap < stride * (factor - 1))
    axis = plan((length, 1), stride * factor, overlap, Sides(stride)).rows
    assert axis.size % stride == 0
    assert axis.size <= stride * factor
    assert all(step > 0 for step in np.diff(axis.starts))
    assert all(start % stride == 0 for start in axis.starts)


@pytest.mark.parametrize("size", [(70, 83), (1, 1), (40, 300)])
@pytest.mark.parametrize("tile", [4, 52, 100])
def test_unpadded_convolutions_tile_exactly(size: tuple[int, int], tile: int) -> None:
    torch.manual_seed(0)
    network = UNet2015(1, 2, width=2).eval()
    image = torch.randn(1, 1, *size)
    with torch.inference_mode():
        whole = network(image)[0].numpy()

        def valid(crop: np.ndarray) -> np.ndarray:
            return network.valid(torch.from_numpy(crop[None].copy()))[0].numpy()

        if tile < 16:
            with pytest.raises(InputError, match="leaves nothing"):
                plan(size, tile, 0, Sides(16, 4, 92))
            return
        tiling = plan(size, tile, 0, Sides(16, 4, 92))
        maps = np.empty_like(whole)
        times = np.zeros(size, int)

        def keep(box: Box, part: np.ndarray) -> None:
            maps[:, *box.slices] = part
            times[box.slices] += 1

        blender = Blender(tiling, keep)
        for one in tiling.tiles:
            box = tiling.input_box(one)
            crop = mirrored(lambda r, c: image[0, :, r, c].permute(1, 2, 0).numpy(), size, box)
            blender.add(one, valid(crop.transpose(2, 0, 1)))
    assert (times == 1).all()
    np.testing.assert_allclose(maps, whole, atol=1e-4)


def test_a_plane_that_fits_is_one_tile_little_larger_than_itself() -> None:
    tiling = plan((50, 20), 512, 0, Sides(16))
    assert (tiling.size, len(tiling.tiles)) == ((64, 32), 1)
    # With room for it, the border is mirrored.
    tiling = plan((256, 500), 512, 64, Sides(16))
    assert (tiling.size, len(tiling.tiles)) == ((320, 512), 1)
    assert tiling.input_box(tiling.tiles[0]) == (-32, 288, 0, 512)


def test_few_tiles_are_made_as_small_as_covers_the_plane() -> None:
    tiling = plan((520, 520), 512, 64, Sides(16))
    assert len(tiling.tiles) == 4
    assert tiling.size == (336, 336)
    assert tiling.rows.starts == (-32, 240)


def test_borders_are_mirrored_again_and_again() -> None:
    image = np.arange(3, dtype=np.float32).reshape(1, 3, 1)
    found = mirrored(lambda r, c: image[r, c], (1, 3), Box(-1, 2, -5, 7))[..., 0]
    assert found.tolist() == [[1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]] * 3


def test_only_what_is_needed_is_read() -> None:
    asked = []

    def read(rows: slice, columns: slice) -> np.ndarray:
        asked.append((rows, columns))
        return np.zeros((rows.stop - rows.start, columns.stop - columns.start, 1), np.float32)

    mirrored(read, (1000, 1000), Box(-8, 24, 500, 532))
    assert asked == [(slice(0, 24), slice(500, 532))]


def test_tiles_in_view_come_first_and_from_its_middle() -> None:
    tiling = plan((1000, 1000), 128, 32, Sides(16))
    view = Box(400, 700, 100, 300)
    order = tiling.nearest_first(tiling.tiles, view)
    assert sorted(order) == tiling.tiles
    met = [tiling.box(tile).meets(view) for tile in order]
    assert met == sorted(met, reverse=True)
    assert any(met)
    first = tiling.box(order[0])
    assert first.top < 550 < first.bottom
    assert first.left < 200 < first.right


def test_memory_is_a_strip_and_not_the_plane() -> None:
    tiling = plan((64, 4096), 64, 16, Sides(16))
    done: list[int] = []
    blender = Blender(tiling, lambda box, part: done.append(box.area))
    maps = np.ones((2, *tiling.size), np.float32)
    for seen, tile in enumerate(tiling.tiles[:-1], 1):
        blender.add(tile, maps)
        assert sum(done) >= seen * 48 * 40


@pytest.mark.parametrize(("size", "nearest"), [(100, 96), (120, 128)])
def test_a_tile_that_does_not_fit_names_the_nearest(size: int, nearest: int) -> None:
    with pytest.raises(InputError, match=f"multiples of 16; the nearest is {nearest}"):
        plan((50, 50), size, 0, Sides(16))


def test_a_tile_too_small_for_the_model_says_what_it_needs() -> None:
    with pytest.raises(InputError, match="too small for this model: it needs at least 224"):
        plan((50, 50), 64, 0, Sides(32, 224))


def test_an_overlap_as_large_as_the_tile_is_refused() -> None:
    with pytest.raises(InputError, match=r"leaves nothing of tiles of 64; choose at most 32"):
        plan((500, 500), 64, 64, Sides(16))
