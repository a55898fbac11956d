from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from segdesk.core.errors import InputError
from segdesk.io.images import hash_file, probe_image, read_image, thumbnail

RNG = np.random.default_rng(7)
GREY = RNG.integers(0, 256, (11, 17), np.uint8)
RGB = RNG.integers(0, 256, (11, 17, 3), np.uint8)


def random(dtype: str, *shape: int) -> Any:
    return (RNG.random(shape) * 200 - (50 if dtype.startswith(("i", "f")) else 0)).astype(dtype)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16"])
def test_png_modes_lose_alpha_and_palette_only(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        picture = Image.fromarray(GREY.astype(np.uint16) * 200)
    else:
        picture = Image.fromarray(RGB).convert(mode)
    picture.save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    expected = {"P": np.array(picture.convert("RGB")), "RGBA": RGB}.get(mode, np.array(picture))
    expected = expected.astype(np.uint8) if mode == "1" else expected
    expected = expected[..., :1] if mode == "LA" else expected.reshape(11, 17, -1)
    np.testing.assert_array_equal(image.data, expected)
    assert image.axes == "YXC"
    assert image.dtype == {"1": "bool", "I;16": "uint16"}.get(mode, "uint8")


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_colours_are_not_cut_to_8(tmp_path: Path, channels: int) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    data = RNG.integers(0, 65536, (11, 17, channels), np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(data))
    image = read_image(tmp_path / "a.png")
    kept = {2: 1, 3: 3, 4: 3}[channels]
    np.testing.assert_array_equal(image.data, data[..., :kept])


@pytest.mark.parametrize("name", ["a.bmp", "a.gif", "a.tif", "wrong_name.jpg"])
def test_the_content_decides_and_not_the_name(tmp_path: Path, name: str) -> None:
    kind = {"wrong_name.jpg": "PNG", "a.tif": "TIFF"}.get(name, name[2:].upper())
    Image.fromarray(GREY).save(tmp_path / name, kind)
    data = read_image(tmp_path / name).data
    assert data.shape[:2] == GREY.shape
    np.testing.assert_array_equal(data[..., 0], GREY)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=exif)
    assert probe_image(tmp_path / "a.jpg").shape == (17, 11)


@pytest.mark.parametrize(
    ("shape", "options", "expected", "axes"),
    [
        ((9, 7), {}, (9, 7, 1), "YXC"),
        ((9, 7, 3), {"photometric": "rgb"}, (9, 7, 3), "YXC"),
        ((9, 7, 4), {"photometric": "rgb", "extrasamples": ["unassalpha"]}, (9, 7, 3), "YXC"),
        (
            (9, 7, 2),
            {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": [2]},
            (9, 7, 1),
            "YXC",
        ),
        ((3, 9, 7), {"photometric": "rgb", "planarconfig": "separate"}, (9, 7, 3), "YXC"),
        ((5, 9, 7), {"photometric": "minisblack"}, (5, 9, 7, 1), "ZYXC"),
        ((5, 9, 7, 3), {"photometric": "rgb"}, (5, 9, 7, 3), "ZYXC"),
        ((2, 9, 7), {"imagej": True, "metadata": {"axes": "CYX"}}, (9, 7, 2), "YXC"),
        ((4, 9, 7), {"imagej": True, "metadata": {"axes": "TYX"}}, (4, 9, 7, 1), "ZYXC"),
        ((4, 2, 9, 7), {"imagej": True, "metadata": {"axes": "ZCYX"}}, (4, 9, 7, 2), "ZYXC"),
        ((2, 4, 9, 7), {"ome": True, "metadata": {"axes": "CZYX"}}, (4, 9, 7, 2), "ZYXC"),
        ((3, 4, 9, 7), {"ome": True, "metadata": {"axes": "TZYX"}}, (12, 9, 7, 1), "ZYXC"),
        ((1, 9, 7), {"photometric": "minisblack"}, (9, 7, 1), "YXC"),
    ],
)
def test_tiff_axes(
    tmp_path: Path, shape: Any, options: dict[str, Any], expected: tuple[int, ...], axes: str
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", random("uint8", *shape), **options)
    image = read_image(tmp_path / "a.tif")
    assert (image.data.shape, image.axes) == (expected, axes)
    assert image.spatial_shape == expected[:-1]
    assert image.channels == expected[-1]


def test_planes_and_channels_are_not_mixed_up(tmp_path: Path) -> None:
    data = random("uint16", 2, 3, 4, 9, 7)
    tifffile.imwrite(tmp_path / "a.ome.tif", data, ome=True, metadata={"axes": "TCZYX"})
    image = read_image(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(image.data[1 * 4 + 2, :, :, 1], data[1, 1, 2])


@pytest.mark.parametrize(
    "dtype", ["uint8", "uint16", "int16", "uint32", "float16", "float32", "float64", ">u2", ">f4"]
)
def test_values_come_back_untouched(tmp_path: Path, dtype: str) -> None:
    data = random(np.dtype(dtype).name, 9, 7)
    order = ">" if dtype[0] == ">" else "<"
    tifffile.imwrite(tmp_path / "a.tif", data, byteorder=order)
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.data[..., 0], data.astype(image.data.dtype))
    assert image.data.dtype == (np.float32 if "f" in dtype else np.dtype(dtype).newbyteorder("="))
    assert image.dtype == np.dtype(dtype).name


def test_a_palette_tiff_shows_its_colours(tmp_path: Path) -> None:
    colors = np.zeros((3, 256), np.uint16)
    colors[:, 1] = 65535, 256, 0
    tifffile.imwrite(tmp_path / "a.tif", np.ones((4, 4), np.uint8), colormap=colors)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").data[0, 0], [255, 1, 0])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([np.nan, np.nan, np.nan], "a.tif contains 3 NaN pixels; replace them"),
        ([np.inf], "a.tif contains 1 infinite pixel; replace them"),
        ([np.nan, -np.inf], "a.tif contains 1 NaN and 1 infinite pixels; replace them"),
    ],
)
def test_nan_and_infinity_are_counted(tmp_path: Path, values: list[float], said: str) -> None:
    data = np.zeros((4, 4), np.float32)
    data.ravel()[: len(values)] = values
    tifffile.imwrite(tmp_path / "a.tif", data)
    with pytest.raises(InputError, match=said):
        read_image(tmp_path / "a.tif")


def test_what_is_not_an_image_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello, this is no image at all")
    (tmp_path / "notes.docx").write_text("hello")
    tifffile.imwrite(tmp_path / "complex.tif", np.zeros((4, 4), np.complex64))
    for name, said in {
        "missing.png": "missing.png does not exist; check the path",
        "empty.png": r"empty.png is empty \(0 bytes\)",
        "text.png": "text.png is not an image although its name says so",
        "notes.docx": r"notes.docx is not of a kind SegDesk reads \(.png, .jpg",
        "complex.tif": "complex.tif holds complex64 values",
        ".": "is a folder; name an image file",
    }.items():
        with pytest.raises(InputError, match=said):
            read_image(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["a.png", "a.jpg", "a.bmp", "a.gif", "a.tif", "b.tif", "c.tif", "d.tif"]
)
@pytest.mark.filterwarnings("ignore")
def test_a_cut_file_raises_or_is_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "b.tif":
        tifffile.imwrite(path, random("uint8", 4, 30, 40), compression="zlib", metadata=None)
    elif name == "d.tif":
        tifffile.imwrite(path, random("uint8", 99, 90), compression="jpeg", tile=(32, 32))
    elif name == "c.tif":
        tifffile.imwrite(path, random("uint16", 2, 3, 30, 40), ome=True, metadata={"axes": "ZCYX"})
    else:
        Image.fromarray(RNG.integers(0, 256, (30, 40, 3), np.uint8)).save(path)
    content, whole = path.read_bytes(), read_image(path)
    raised = 0
    cuts = [*range(1, len(content), max(1, len(content) // 150)), len(content) - 1]
    for cut in cuts:
        path.write_bytes(content[:cut])
        try:
            image = read_image(path)
        except InputError:
            raised += 1
        else:  # only the bytes after the last pixel are gone
            np.testing.assert_array_equal(image.data, whole.data)
    assert raised >= len(cuts) - (0 if name == "a.png" else 2)


def test_a_picture_above_pillows_limit_is_read(tmp_path: Path, monkeypatch: Any) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_image(tmp_path / "a.png").spatial_shape == GREY.shape


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((200, 100, 1), (96, 48, 3)), ((5, 30, 40, 2), (30, 40, 3)), ((1, 500, 5), (1, 96, 3))],
)
def test_thumbnails_are_small_rgb(tmp_path: Path, shape: Any, expected: Any) -> None:
    path = tmp_path / "a.tif"
    planar = "CYX" if len(shape) == 3 else "ZCYX"
    data = np.moveaxis(random("float32", *shape), -1, -3)
    tifffile.imwrite(path, data, photometric="minisblack", metadata={"axes": planar})
    small = thumbnail(read_image(path))
    assert (small.shape, small.dtype) == (expected, np.uint8)
    assert small.max() > small.min()


def test_a_constant_image_has_a_thumbnail(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full((9, 9), 5, np.uint16))
    assert thumbnail(read_image(tmp_path / "a.tif")).max() == 0


def test_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"abc")
    assert hash_file(tmp_path / "a.png") == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(
    ("folder", "channels", "dtype"),
    [
        ("nuclei/val/images", 3, "uint8"),
        ("kvasir224/val/images", 3, "uint8"),
        ("camvid/val/images", 3, "uint8"),
        ("hippocampus3d/images", 1, None),
        ("ct_lung/images", 1, "int16"),
    ],
)
def test_real_images(real_data: Path, folder: str, channels: int, dtype: str | None) -> None:
    for path in sorted((real_data / folder).iterdir())[:3]:
        image = read_image(path)
        assert image.channels == channels
        assert image.axes == ("ZYXC" if "3d" in folder else "YXC")
        assert dtype in (None, image.dtype)
        assert thumbnail(image).std() > 5


def test_real_stack_and_odd_tiff(real_data: Path) -> None:
    assert probe_image(real_data / "em_membrane/volume.tif").shape == (20, 512, 512)
    odd = probe_image(real_data / "odd_files/rgb_tagged_blackiszero.tif")
    assert (odd.shape, odd.channels) == ((288, 384), 3)
    with pytest.raises(InputError, match=r"hippocampus_001\.nii\.gz is not of a kind"):
        probe_image(real_data / "odd_files/hippocampus_001.nii.gz")
