from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from segdesk.core.errors import SegDeskError
from segdesk.io.labels import (
    BAND,
    read_labels,
    read_plane,
    write_bands,
    write_labels,
    write_plane,
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(shape=st.lists(st.integers(1, 9), min_size=2, max_size=3), seed=st.integers(0, 99))
def test_labels_of_any_shape_come_back(tmp_path: Path, shape: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, supervision = rng.integers(0, 256, (2, *shape), np.uint8)
    write_labels(tmp_path / "r1.tif", labels, supervision)
    read = read_labels(tmp_path / "r1.tif")
    np.testing.assert_array_equal(read[0], labels)
    np.testing.assert_array_equal(read[1], supervision)
    uncertainty = rng.random(shape, np.float32)
    write_plane(tmp_path / "u.tif", uncertainty)
    np.testing.assert_array_equal(read_plane(tmp_path / "u.tif"), uncertainty)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("shape", [(30, 20), (1100, 40), (3, 600, 40)])
def test_what_is_written_in_bands_is_the_same_file(
    tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    array = (np.random.default_rng(0).random(shape) * 200).astype(dtype)
    planes = array if array.ndim == 3 else array[None]
    bands = (plane[y : y + BAND] for plane in planes for y in range(0, shape[-2], BAND))
    write_bands(tmp_path / "a.tif", shape, dtype, bands)
    write_plane(tmp_path / "b.tif", array)
    for name in ("a.tif", "b.tif"):
        np.testing.assert_array_equal(read_plane(tmp_path / name), array)
    pages = []
    for name in ("a.tif", "b.tif"):
        with tifffile.TiffFile(tmp_path / name) as tiff:
            pages.append(tiff.series[0])
    assert pages[0].axes == pages[1].axes
    with Image.open(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(np.array(image), planes[0])


def test_other_programs_open_them_and_see_what_the_planes_are(tmp_path: Path) -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    write_labels(tmp_path / "r1.tif", labels, np.full_like(labels, 2))
    with Image.open(tmp_path / "r1.tif") as image:
        np.testing.assert_array_equal(np.array(image), labels)
        image.seek(1)
        assert np.array(image).min() == 2
    with tifffile.TiffFile(tmp_path / "r1.tif") as tiff:
        assert tiff.series[0].axes == "CYX"
        assert '"planes": ["labels", "supervision"]' in tiff.pages[0].description


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_cut_file_is_told(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "r0001.tif"
    labels = np.random.default_rng(0).integers(0, 9, (64, 64), np.uint8)
    write_labels(path, labels, labels)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(SegDeskError, match=r"r0001\.tif is damaged"):
        read_labels(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SegDeskError, match=r"r0001\.tif does not exist"):
        read_labels(tmp_path / "r0001.tif")
