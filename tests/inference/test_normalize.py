from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segdesk.core.card import Normalization
from segdesk.core.errors import InputError
from segdesk.inference.normalize import fit_channels, scale, standardize

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
