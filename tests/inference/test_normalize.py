from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segdesk.config.inference import InferenceConfig, Scaling
from segdesk.core.card import Normalization
from segdesk.core.errors import InputError
from segdesk.inference.normalize import (
    choose_channels,
    choose_method,
    fit_channels,
    fit_scaler,
    pick_channels,
    scale,
    standardize,
)
from segdesk.io.images import read_image
from segdesk.io.sources import open_source

HOW = Normalization()
DTYPES = ["uint8", "uint16", "int16", "float32"]

images = hnp.arrays(
    st.sampled_from([np.dtype(d) for d in (*DTYPES, "int32", "uint32", "float16")]),
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3)),
    elements=None,
    fill=st.nothing(),
).filter(lambda a: bool(np.isfinite(a).all()))


@settings(max_examples=200)
@given(data=images)
def test_whatever_the_pixels_the_network_gets_numbers(data: np.ndarray) -> None:
    unit = scale(data, HOW)
    assert unit.dtype == np.float32
    assert unit.shape == data.shape
    assert np.isfinite(unit).all()
    assert unit.min() >= 0
    assert unit.max() <= 1
    assert np.isfinite(standardize(unit, HOW)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_constant_image_is_0_everywhere(dtype: str, value: int) -> None:
    assert not scale(np.full((8, 8, 3), value, dtype), HOW).any()


@pytest.mark.parametrize(("dtype", "factor"), [("uint16", 257), ("int16", 100), ("float32", 1e-3)])
def test_the_pixel_type_does_not_matter(dtype: str, factor: float) -> None:
    small = np.random.default_rng(0).integers(0, 256, (32, 32, 1)).astype(np.uint8)
    large = (small.astype(np.float64) * factor).astype(dtype)
    shifted = large - large.dtype.type(50) if dtype == "int16" else large
    np.testing.assert_allclose(scale(small, HOW), scale(shifted, HOW), atol=2e-3)


def test_a_few_bright_pixels_do_not_darken_the_rest() -> None:
    data = np.random.default_rng(0).integers(0, 100, (100, 100, 1)).astype(np.uint16)
    plain = scale(data, HOW).mean()
    data[0, :5] = 65535
    assert scale(data, HOW).mean() == pytest.approx(plain, rel=0.05)


def test_a_single_bright_pixel_on_black_is_seen() -> None:
    data = np.zeros((100, 100, 1), np.uint8)
    data[4, 4] = 3
    unit = scale(data, HOW)
    assert unit[4, 4] == 1
    assert unit.sum() == 1


def test_colour_is_kept() -> None:
    """A red image must not become a grey one, as scaling each channel alone would do."""
    random = np.random.default_rng(0).integers(0, 50, (32, 32))
    data = np.stack([200 + random, 50 + random, random], -1).astype(np.uint8)
    red, green, blue = scale(data, HOW).mean((0, 1))
    assert red - blue > 0.7
    assert red > green > blue


@pytest.mark.parametrize("shape", [(4, 5, 1), (2, 4, 5, 1)])
def test_grey_is_repeated_for_a_colour_model(shape: tuple[int, ...]) -> None:
    data: Any = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    fitted = fit_channels(data, 3, "m")
    assert fitted.shape == (*shape[:-1], 3)
    assert (fitted == data).all()


@pytest.mark.parametrize(("found", "takes"), [(2, 3), (3, 1), (4, 3), (3, 2), (2, 1)])
def test_other_channels_are_refused(found: int, takes: int) -> None:
    says = rf"The image has {found} channels, but the model 'm' takes {takes}"
    with pytest.raises(InputError, match=says):
        fit_channels(np.zeros((4, 4, found), np.uint8), takes, "m")


METHODS: list[Any] = ["percentile", "minmax", "zscore"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_method_gives_0_to_1_and_a_constant_image_0(method: Any, dtype: str) -> None:
    how = Normalization(method=method)
    random = np.random.default_rng(0).integers(0, 250, (40, 40, 3)).astype(dtype)
    unit = scale(random, how)
    assert (unit.dtype, unit.min() >= 0, unit.max() <= 1) == (np.float32, True, True)
    assert unit.std() > 0.04
    for value in (0, 7, 100):
        assert not scale(np.full((8, 8, 1), value, dtype), how).any()


def test_what_the_methods_make_0_and_1() -> None:
    data = np.arange(1001, dtype=np.uint16).reshape(7, 143, 1)
    kept = scale(data, Normalization(method="minmax")).reshape(-1)
    np.testing.assert_allclose(kept, np.arange(1001) / 1000, atol=1e-6)
    most = scale(data, Normalization(low_percentile=10, high_percentile=90)).reshape(-1)
    assert (most[100], most[900]) == (0, 1)
    assert most[500] == pytest.approx(0.5)
    plain = Normalization(method="zscore", mean=0.5, std=0.1)
    scores = standardize(scale(data, plain), plain)
    np.testing.assert_allclose(scores, (data - data.mean()) / data.std(), atol=1e-4)


def test_an_old_card_still_means_percentiles() -> None:
    old = '{"low_percentile":1.0,"high_percentile":99.8,"mean":0.5,"std":0.25}'
    assert Normalization.model_validate_json(old) == Normalization(method="percentile")


def test_the_user_may_choose_another_method_than_the_card() -> None:
    card = Normalization(low_percentile=3, mean=0.4)
    assert choose_method(card, Scaling.CARD) is card
    assert choose_method(card, Scaling.ZSCORE) == Normalization(
        method="zscore", low_percentile=3, mean=0.4
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(90, 70), (4, 50, 60), (90, 70, 3), (1100, 1000, 3)])
def test_pieces_of_a_small_image_are_scaled_as_the_whole(
    tmp_path: Path, method: Any, shape: tuple[int, ...]
) -> None:
    how = Normalization(method=method)
    data = np.random.default_rng(0).integers(0, 4000, shape).astype(np.uint16)
    kind = "rgb" if shape[-1] == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", data, photometric=kind)
    zarr.create_array(tmp_path / "a.zarr", data=data, chunks=tuple(min(n, 256) for n in shape))
    image = read_image(tmp_path / "a.tif").data
    picked = pick_channels(image.shape[-1], 3, "m")
    expected = standardize(scale(fit_channels(image, 3, "m"), how), how)
    for name in ("a.tif", "a.zarr"):
        with open_source(tmp_path / name) as source:
            scaler = fit_scaler(source, how, picked)
            last = source.planes - 1
            box = choose_channels(source.read(last, slice(10, 40), slice(20, 50)), picked)
            plane = expected[last] if expected.ndim == 4 else expected
            np.testing.assert_array_equal(scaler(box), plane[10:40, 20:50])


def test_a_large_lazy_image_is_scaled_nearly_as_the_whole(tmp_path: Path) -> None:
    """An uneven image: bright discs on a ground that rises from corner to corner."""
    random = np.random.default_rng(0)
    size = 6144
    ramp = np.linspace(0, 600, size, dtype=np.float32)
    data = (ramp[:, None] + ramp).astype(np.uint16)
    for y, x in random.integers(0, size - 32, (1500, 2)):
        data[y : y + 32, x : x + 32] += 3000
    zarr.create_array(tmp_path / "a.zarr", data=data, chunks=(1024, 1024), compressors=None)
    some = data[::8, ::8, None]
    with open_source(tmp_path / "a.zarr") as source:
        assert source.nbytes > 64 * 2**20
        for method in METHODS:
            how = Normalization(method=method)
            scaler = fit_scaler(source, how)
            exact = standardize(scale(some, how), how)
            assert np.abs(exact - scaler(some)).mean() < 0.05 * np.ptp(exact), method
            assert scaler.describe().startswith("values "), method


def test_the_choice_of_channels_is_followed() -> None:
    block = np.random.default_rng(0).integers(0, 255, (5, 6, 4)).astype(np.uint8)

    def chosen(text: str, takes: int) -> Any:
        picked = pick_channels(4, takes, "m", InferenceConfig(channels=text).chosen_channels)
        return choose_channels(block, picked)

    np.testing.assert_array_equal(chosen("2, 0,3", 3), block[..., [2, 0, 3]])
    np.testing.assert_array_equal(chosen("1", 3), block[..., [1, 1, 1]])
    np.testing.assert_array_equal(chosen("3", 1), block[..., 3:])
    assert chosen("", 4) is block


@pytest.mark.parametrize(
    ("found", "takes", "chosen", "says"),
    [
        (17, 3, (), r"x.tif has 17 channels, .* takes 3; .* setting 'channels' .*channels=0,1,2\)"),
        (2, 3, (), r"x.tif has 2 channels, .* takes 3; .* setting 'channels' .*channels=0,1,0\)"),
        (3, 3, (0, 1, 3), r"x.tif has channels 0 to 2, but .* asks for channel 3"),
        (1, 1, (1,), r"x.tif has only channel 0, but .* asks for channel 1"),
        (5, 3, (0, 1), r"names 2 channels, but the model 'm' takes 3"),
    ],
)
def test_channels_that_do_not_fit_are_told_with_the_way_out(
    found: int, takes: int, chosen: tuple[int, ...], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        pick_channels(found, takes, "m", chosen, "x.tif")


@pytest.mark.parametrize("text", ["a", "1;2", "-1", "0,,1", "0."])
def test_channels_are_written_as_numbers(text: str) -> None:
    with pytest.raises(InputError, match=r"Channels .* write numbers from 0 with commas"):
        InferenceConfig.from_user({"channels": text})
