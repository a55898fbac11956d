from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from segdesk.core.classes import UNLABELLED, ClassMap
from segdesk.core.errors import InputError
from segdesk.io.images import probe_image
from segdesk.io.masks import MaskReading, read_mask

SHAPE = (20, 30)
THREE = ClassMap.from_names(["background", "leaf", "stem"])


def square(inside: int, outside: int = 0, dtype: str = "uint8") -> Any:
    mask = np.full(SHAPE, outside, dtype)
    mask[5:15, 10:20] = inside
    return mask


def saved(path: Path, array: Any, **options: Any) -> Path:
    if path.suffix == ".tif":
        tifffile.imwrite(path, array, **options)
    else:
        Image.fromarray(array).save(path, **options)
    return path


def palette_file(path: Path, indices: Any, colors: list[tuple[int, int, int]]) -> Path:
    image = Image.fromarray(indices, "P")
    image.putpalette([v for color in colors for v in color])
    image.save(path)
    return path


def is_square(reading: MaskReading) -> bool:
    return np.array_equal(reading.labels, square(1)) and reading.labels.dtype == np.uint8


@pytest.mark.parametrize(
    ("name", "mask", "said"),
    [
        ("a.png", square(255), "0/255 mask: 255 read as nucleus"),
        ("a.bmp", square(255), "0/255 mask: 255 read as nucleus"),
        ("a.png", square(128), "0/128 mask: 128 read as nucleus"),
        ("a.png", square(1), "0/1 mask: 1 read as nucleus"),
        ("a.png", square(1).astype(bool), "0/1 mask: 1 read as nucleus"),
        ("a.tif", square(1).astype(bool), "0/1 mask: 1 read as nucleus"),
        ("a.tif", square(65535, dtype="uint16"), "0/65535 mask: 65535 read as nucleus"),
        ("a.tif", square(1, dtype="float32"), "0/1 mask: 1 read as nucleus"),
        ("a.tif", square(255, dtype="float64"), "0/255 mask: 255 read as nucleus"),
        ("a.png", np.dstack([square(255)] * 3), "0/255 mask: 255 read as nucleus"),
        ("a.png", np.dstack([square(255)] * 3 + [square(9)]), "0/255 mask: 255 read as nucleus"),
        (
            "a.png",
            np.dstack([square(254, 4), square(254, 2), square(254, 4)]),
            "mask of two colours: the brighter read as nucleus",
        ),
    ],
)
def test_two_class_masks(
    tmp_path: Path, two_classes: ClassMap, name: str, mask: Any, said: str
) -> None:
    reading = read_mask(saved(tmp_path / name, mask), two_classes, SHAPE)
    assert is_square(reading)
    assert reading.description == said


@pytest.mark.parametrize("dtype", ["uint16", "int32", "uint32", "int64"])
def test_instances_are_counted(tmp_path: Path, two_classes: ClassMap, dtype: str) -> None:
    mask = square(1, dtype=dtype)
    mask[5:15, 15:20] = 700
    mask[5, 10] = 2
    reading = read_mask(saved(tmp_path / "a.tif", mask), two_classes, SHAPE)
    assert is_square(reading)
    assert reading.description == "instance mask with 3 objects: every object read as nucleus"


def test_two_objects_are_not_an_object_and_void(tmp_path: Path, two_classes: ClassMap) -> None:
    mask = square(1, dtype="uint16")
    mask[5:15, 15:20] = 2
    assert is_square(read_mask(saved(tmp_path / "a.tif", mask), two_classes, SHAPE))


@pytest.mark.parametrize("void", [3, UNLABELLED])
def test_void_is_unlabelled_and_said(tmp_path: Path, void: int) -> None:
    mask = square(2)
    mask[0] = void
    reading = read_mask(saved(tmp_path / "a.png", mask), THREE, SHAPE)
    assert reading.description == f"index mask: background, stem; {void} read as unlabelled"
    assert (reading.labels[0] == UNLABELLED).all()
    np.testing.assert_array_equal(reading.labels[1:], mask[1:])


def test_unlabelled_beside_a_nucleus(tmp_path: Path, two_classes: ClassMap) -> None:
    mask = square(1)
    mask[0] = UNLABELLED
    reading = read_mask(saved(tmp_path / "a.png", mask), two_classes, SHAPE)
    np.testing.assert_array_equal(reading.labels, mask)


@pytest.mark.parametrize(("value", "label"), [(0, 0), (255, 1)])
def test_masks_of_one_value(tmp_path: Path, two_classes: ClassMap, value: int, label: int) -> None:
    reading = read_mask(saved(tmp_path / "a.png", square(value, value)), two_classes, SHAPE)
    assert (reading.labels == label).all()


def test_4_bit_greys_are_class_ids(tmp_path: Path) -> None:
    mask = square(2)
    image = Image.fromarray(mask, "P")
    image.putpalette([i for i in range(0, 256, 17) for _ in range(3)])
    image.save(tmp_path / "a.png", bits=4)
    content = (tmp_path / "a.png").read_bytes()
    assert content[24:26] == b"\x04\x03"
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png", THREE, SHAPE).labels, mask)
    grey = bytearray(content)
    grey[25] = 0  # the same samples as a grey PNG
    start = content.index(b"PLTE") - 4
    stop = start + 12 + int.from_bytes(content[start : start + 4], "big")
    grey[29:33] = zlib.crc32(grey[12:29]).to_bytes(4, "big")
    (tmp_path / "b.png").write_bytes(grey[:start] + grey[stop:])
    np.testing.assert_array_equal(read_mask(tmp_path / "b.png", THREE, SHAPE).labels, mask)


def test_palettes_go_by_index(tmp_path: Path) -> None:
    colors = [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
    reading = read_mask(palette_file(tmp_path / "a.png", square(2, 1), colors), THREE, SHAPE)
    np.testing.assert_array_equal(reading.labels, square(2, 1))
    assert reading.description == "palette mask, by index: index mask: leaf, stem"


@pytest.mark.parametrize(
    ("inside", "outside", "colors"),
    [
        (1, 0, [(4, 2, 4), (252, 254, 252)]),
        (0, 1, [(252, 254, 252), (4, 2, 4)]),
        (5, 7, [(0, 0, 0)] * 5 + [(252, 254, 252), (9, 9, 9), (4, 2, 4)]),
    ],
)
def test_two_odd_palette_colours_go_by_darkness(
    tmp_path: Path, two_classes: ClassMap, inside: int, outside: int, colors: Any
) -> None:
    path = palette_file(tmp_path / "a.png", square(inside, outside), colors)
    assert is_square(read_mask(path, two_classes, SHAPE))
    Image.open(path).save(tmp_path / "a.gif")
    assert is_square(read_mask(tmp_path / "a.gif", two_classes, SHAPE))


def test_colours_of_the_classes_are_known(tmp_path: Path) -> None:
    colors = np.array([bytes.fromhex(c.color[1:]) for c in THREE.classes], "S3").view(np.uint8)
    rgb = colors.reshape(3, 3)[square(2, 1)]
    np.testing.assert_array_equal(
        read_mask(saved(tmp_path / "a.png", rgb), THREE, SHAPE).labels, square(2, 1)
    )


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_greys_are_split(tmp_path: Path, two_classes: ClassMap, mode: str) -> None:
    yy, xx = np.mgrid[:200, :200]
    disk = ((yy - 100) ** 2 + (xx - 100) ** 2 < 2500).astype(np.uint8)
    Image.fromarray(disk * 255).convert(mode).save(tmp_path / "a.jpg", quality=95)
    reading = read_mask(tmp_path / "a.jpg", two_classes, (200, 200))
    assert (reading.labels != disk).mean() < 0.002
    assert reading.description.startswith("JPEG mask with stray greys (")
    assert reading.description.endswith(" % of pixels): split at 128")


def test_a_jpeg_without_objects_is_background(tmp_path: Path, two_classes: ClassMap) -> None:
    reading = read_mask(saved(tmp_path / "a.jpg", square(0)), two_classes, SHAPE)
    assert not reading.labels.any()
    assert reading.description == "mask of background everywhere"


def test_a_stack_of_masks(tmp_path: Path, two_classes: ClassMap) -> None:
    stack = np.stack([square(255)] * 4)
    path = saved(tmp_path / "a.tif", stack, photometric="minisblack")
    reading = read_mask(path, two_classes, (4, *SHAPE))
    np.testing.assert_array_equal(reading.labels, stack // 255)


@pytest.mark.parametrize(
    ("name", "mask", "said"),
    [
        ("a.png", np.zeros((9, 7), np.uint8), "a.png is 7 x 9 pixels but its image is 30 x 20"),
        ("a.tif", np.zeros((2, 9, 7), np.uint8), "a.tif is 2 planes of 7 x 9 pixels but"),
        ("a.png", square(9), "a.png holds the value 9, but the classes are 0 to 2"),
        (
            "a.png",
            np.arange(600).reshape(SHAPE).astype(np.uint8),
            "holds the values 3, 4, 5, 6, 7, ..., but the classes are 0 to 2",
        ),
        ("a.tif", square(-1, dtype="int16"), "holds the value -1, but"),
        ("a.tif", square(1, dtype="float32") / 2, "holds values such as 0.5; a mask holds whole"),
        ("a.tif", square(1, dtype="float32") * np.nan, "holds values such as nan"),
        ("a.png", np.dstack([square(1), square(2), square(3)]), "a.png has 2 colours that do not"),
        ("a.jpg", square(2), "a.jpg is a JPEG, which blurs the values"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path: Path, name: str, mask: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_mask(saved(tmp_path / name, mask), THREE, SHAPE)


def test_a_byte_mask_of_many_greys_is_refused(tmp_path: Path, two_classes: ClassMap) -> None:
    photo = np.arange(600).reshape(SHAPE).astype(np.uint8)
    with pytest.raises(InputError, match=r"2, 3, 4, 5, 6, \.\.\., but the classes are 0 to 1"):
        read_mask(saved(tmp_path / "a.png", photo), two_classes, SHAPE)


CAMVID = ClassMap.from_names(
    re.findall(r"\w+", "sky building pole road pavement tree sign fence car pedestrian bicyclist")
)


@pytest.mark.parametrize(
    ("images", "masks", "said"),
    [
        ("nuclei/val/images", "nuclei/val/masks", "0/255 mask: 255"),
        ("nuclei/val/images", "nuclei/val/instances", "instance mask with"),
        ("kvasir224/val/images", "kvasir224/val/masks", "0/1 mask: 1 read as nucleus"),
        ("kvasir_native/images", "kvasir_native/masks", "0/255 mask"),
        ("ct_lung/images", "ct_lung/masks", "0/255 mask: 255"),
    ],
)
def test_real_two_class_masks(
    real_data: Path, two_classes: ClassMap, images: str, masks: str, said: str
) -> None:
    for image in sorted((real_data / images).iterdir())[:4]:
        mask = next((real_data / masks).glob(f"{image.stem}.*"))
        reading = read_mask(mask, two_classes, probe_image(image).shape)
        assert reading.description.startswith(said)
        assert set(np.unique(reading.labels)) == {0, 1}


def test_real_nuclei_instances_cover_their_masks(real_data: Path, two_classes: ClassMap) -> None:
    mask = sorted((real_data / "nuclei/val/masks").iterdir())[0]
    shape = probe_image(mask).shape
    whole = read_mask(mask, two_classes, shape).labels
    objects = read_mask(
        real_data / "nuclei/val/instances" / f"{mask.stem}.tif", two_classes, shape
    ).labels
    assert (whole != objects).mean() < 0.05


def test_real_index_masks(real_data: Path) -> None:
    mask = sorted((real_data / "camvid/val/masks").iterdir())[0]
    reading = read_mask(mask, CAMVID, (360, 480))
    raw = np.array(Image.open(mask))
    np.testing.assert_array_equal(reading.labels, np.where(raw == 11, UNLABELLED, raw))
    assert reading.description.endswith("; 11 read as unlabelled")
    for volume in sorted((real_data / "hippocampus3d/masks").iterdir())[:3]:
        image = real_data / "hippocampus3d/images" / volume.name
        reading = read_mask(volume, THREE, probe_image(image).shape)
        assert reading.description == "index mask: background, leaf, stem"


def test_real_membrane_stack(real_data: Path, two_classes: ClassMap) -> None:
    reading = read_mask(real_data / "em_membrane/labels.tif", two_classes, (20, 512, 512))
    assert reading.labels.mean() == pytest.approx(0.78, abs=0.02)


@pytest.mark.parametrize(
    ("name", "said", "share"),
    [
        ("palette_mask_black_is_4_2_4.gif", "mask", 29440 / 584 / 565),
        ("mask_as_jpeg_not_binary.jpg", r"JPEG mask with stray greys \(1\.\d % of", 0.354),
        ("mask_1bit.png", "0/1 mask: 1 read as nucleus", 71768 / 960 / 999),
    ],
)
def test_real_odd_masks(
    real_data: Path, two_classes: ClassMap, name: str, said: str, share: float
) -> None:
    path = real_data / "odd_files" / name
    reading = read_mask(path, two_classes, probe_image(path).shape)
    assert re.search(said, reading.description)
    assert reading.labels.mean() == pytest.approx(share, abs=0.003)
