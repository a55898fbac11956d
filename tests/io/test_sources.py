"""Reading an image in pieces gives what reading it whole gives."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numcodecs
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import zarr

from segdesk.core.errors import InputError
from segdesk.io.boxes import ChunkedImage, guarded
from segdesk.io.images import read_image
from segdesk.io.sources import (
    ImageSource,
    hash_source,
    is_zarr,
    open_source,
    probe_source,
    read_thumbnail,
)
from slow_server import serving

RNG = np.random.default_rng(3)
Pixels = npt.NDArray[Any]


def test_a_server_that_says_nothing_leaves_no_empty_words() -> None:
    said = r"far\.zarr cannot be read \(TimeoutError\); check"
    with pytest.raises(InputError, match=said), guarded("far.zarr", None)(""):
        raise TimeoutError


def random(dtype: str, *shape: int) -> Pixels:
    low = 50 if np.dtype(dtype).kind in "if" else 0
    return (RNG.random(shape) * 200 - low).astype(dtype)


def write_ome(
    store: Any, levels: list[Pixels], axes: str, *, version: str = "0.5", **options: Any
) -> None:
    """Write levels as OME-Zarr, with zarr alone."""
    kinds = {"t": "time", "c": "channel"}
    told = [{"name": a, "type": kinds.get(a, "space")} for a in axes]
    scales = [{"axes": told, "datasets": [{"path": str(n)} for n in range(len(levels))]}]
    group = zarr.open_group(store, mode="w", zarr_format=3 if version == "0.5" else 2)
    if version == "0.5":
        group.attrs["ome"] = {"version": version, "multiscales": scales}
    else:
        group.attrs["multiscales"] = [scales[0] | {"version": version}]
    for number, data in enumerate(levels):
        chunks = options.get("chunks", tuple(min(n, 32) for n in data.shape))
        array = group.create_array(
            str(number), shape=data.shape, dtype=data.dtype, chunks=chunks,
            **{k: v for k, v in options.items() if k != "chunks"},
        )  # fmt: skip
        array[...] = data


def all_of(source: ImageSource, level: int = 0) -> Pixels:
    """Read every plane in boxes that fit no chunk."""
    *stack, height, width = source.level_shape(level)
    planes = []
    for z in range(stack[0] if stack else 1):
        plane = np.full((height, width, source.channels), 77.5)
        for y in range(0, height, 37):
            for x in range(0, width, 41):
                rows, columns = slice(y, min(y + 37, height)), slice(x, min(x + 41, width))
                plane[rows, columns] = source.read(z, rows, columns, level)
        planes.append(plane)
    return np.stack(planes) if stack else planes[0]


COLORMAP = np.zeros((3, 256), np.uint16)
COLORMAP[:, :250] = RNG.integers(0, 65535, (3, 250))

TIFFS: dict[str, tuple[Pixels, dict[str, Any]]] = {
    "grey": (random("uint8", 99, 90), {}),
    "signed": (random("int16", 99, 90), {"tile": (32, 32)}),
    "big_endian": (random("uint16", 99, 90), {"byteorder": ">"}),
    "big_endian_tiles": (random("float32", 99, 90), {"byteorder": ">", "tile": (32, 48)}),
    "double": (random("float64", 99, 90), {"tile": (32, 32), "compression": "zlib"}),
    "bilevel": (random("uint8", 99, 90) > 90, {"tile": (32, 32)}),
    "rgb": (random("uint8", 99, 90, 3), {"photometric": "rgb", "tile": (16, 48)}),
    "rgb_strips": (random("uint8", 99, 90, 3), {"photometric": "rgb", "rowsperstrip": 7,
                   "compression": "zlib", "predictor": True}),
    "rgba": (random("uint8", 99, 90, 4), {"photometric": "rgb", "extrasamples": ["unassalpha"],
             "tile": (32, 32)}),
    "rgba_rows": (random("uint8", 99, 90, 4), {"photometric": "rgb", "extrasamples": [2]}),
    "planar": (random("uint16", 3, 99, 90), {"photometric": "rgb", "planarconfig": "separate",
               "tile": (32, 32)}),
    "planar_rows": (random("uint16", 3, 99, 90), {"photometric": "rgb",
                    "planarconfig": "separate"}),
    "palette": (random("uint8", 99, 90), {"colormap": COLORMAP, "tile": (32, 32)}),
    "jpeg": (random("uint8", 99, 90, 3), {"photometric": "ycbcr", "compression": "jpeg",
             "subsampling": (2, 2), "tile": (32, 32)}),
    "stack": (random("uint16", 5, 39, 40), {"photometric": "minisblack"}),
    "stack_tiles": (random("uint16", 5, 39, 40), {"photometric": "minisblack", "tile": (16, 16)}),
    "color_stack": (random("uint8", 5, 39, 40, 3), {"photometric": "rgb", "compression": "zlib"}),
    "imagej": (random("uint16", 4, 2, 39, 40), {"imagej": True, "metadata": {"axes": "ZCYX"}}),
    "ome": (random("uint16", 2, 3, 4, 39, 40), {"ome": True, "metadata": {"axes": "TCZYX"},
            "tile": (16, 16)}),
    "unsaid_channels": (random("uint8", 99, 90, 5), {"photometric": "minisblack"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", TIFFS)
def test_a_tiff_in_pieces_has_the_values_of_the_whole(tmp_path: Path, kind: str) -> None:
    data, options = TIFFS[kind]
    path = tmp_path / ("a.ome.tif" if kind == "ome" else "a.tif")
    tifffile.imwrite(path, data, **options)
    whole = read_image(path)
    with open_source(path, whole_below=0) as source:
        assert source.is_lazy
        assert (source.shape, source.channels) == (whole.spatial_shape, whole.channels)
        assert (source.dtype, source.name) == (whole.dtype, path.name)
        np.testing.assert_array_equal(all_of(source), whole.data)
        assert source.read_level().dtype == whole.data.dtype
    with open_source(path) as small:
        assert not small.is_lazy
        np.testing.assert_array_equal(all_of(small), whole.data)


def test_a_pyramid_tiff_has_levels(tmp_path: Path) -> None:
    data = random("uint8", 200, 160, 3)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tiff:
        common = {"photometric": "rgb", "tile": (32, 32), "compression": "zlib"}
        tiff.write(data, subifds=2, **common)
        tiff.write(data[::2, ::2], subfiletype=1, **common)
        tiff.write(data[::4, ::4], subfiletype=1, **common)
    with open_source(tmp_path / "a.ome.tif", whole_below=0) as source:
        assert [source.level_shape(n) for n in range(source.levels)] == [
            (200, 160), (100, 80), (50, 40),
        ]  # fmt: skip
        for level, step in enumerate((1, 2, 4)):
            np.testing.assert_array_equal(all_of(source, level), data[::step, ::step])


def test_of_a_tiled_tiff_only_the_needed_tiles_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    data = random("uint8", 1024, 1024)
    tifffile.imwrite(path, data, tile=(256, 256), compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        spans = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    with path.open("r+b") as stream:
        for number, (offset, count) in enumerate(spans):
            if number != 6:  # row 1, column 2
                stream.seek(offset)
                stream.write(bytes(count))
    with open_source(path, whole_below=0) as source:
        box = source.read(0, slice(300, 400), slice(520, 700))
        np.testing.assert_array_equal(box[..., 0], data[300:400, 520:700])
        with pytest.raises(InputError, match=r"a.tif \(rows 0 to 255, columns 0 to 255\) is dam"):
            source.read(0, slice(0, 10), slice(0, 10))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        ("yx", (70, 90), (70, 90, 1)),
        ("cyx", (3, 70, 90), (70, 90, 3)),
        ("zyx", (4, 70, 90), (4, 70, 90, 1)),
        ("tczyx", (2, 3, 4, 30, 40), (8, 30, 40, 3)),
        ("tczyx", (1, 2, 1, 30, 40), (30, 40, 2)),
        ("tzcyx", (2, 3, 2, 30, 40), (6, 30, 40, 2)),
        ("zyxc", (2, 30, 40, 3), (2, 30, 40, 3)),
    ],
)
def test_an_ome_zarr_has_the_values_that_were_written(
    tmp_path: Path, version: str, axes: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    data = random("uint16", *shape)
    write_ome(tmp_path / "a.ome.zarr", [data], axes, version=version)
    order = [axes.index(a) for a in ("t", "z", "y", "x", "c") if a in axes]
    with open_source(tmp_path / "a.ome.zarr") as source:
        assert source.shape == expected[:-1]
        assert source.channels == expected[-1]
        assert (source.dtype, source.levels, source.is_lazy) == ("uint16", 1, True)
        found = all_of(source)
        assert found.shape == expected
        np.testing.assert_array_equal(found, data.transpose(order).reshape(expected))


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">u2", "uint32", "float32", "float64", "bool"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_zarr_and_a_tiff_of_the_same_pixels_agree(
    tmp_path: Path, dtype: str, zarr_format: Any
) -> None:
    data = random("uint8", 50, 60) > 70 if dtype == "bool" else random(dtype, 50, 60)
    tifffile.imwrite(tmp_path / "a.tif", data)
    array = zarr.create_array(tmp_path / "a.zarr", shape=data.shape, dtype=data.dtype,
                              chunks=(16, 16), zarr_format=zarr_format)  # fmt: skip
    array[...] = data
    whole = read_image(tmp_path / "a.tif")
    with open_source(tmp_path / "a.zarr") as source:
        assert source.dtype == whole.dtype
        assert source.read_level().dtype == whole.data.dtype
        np.testing.assert_array_equal(all_of(source), whole.data)


@pytest.mark.parametrize(
    ("shape", "names", "expected"),
    [
        ((20, 30), None, (20, 30, 1)),
        ((20, 30, 3), None, (20, 30, 3)),
        ((5, 20, 30), None, (5, 20, 30, 1)),
        ((2, 20, 30), ("c", "y", "x"), (20, 30, 2)),
        ((20, 30, 3), ("z", "y", "x"), (20, 30, 3, 1)),
        ((2, 20, 30, 3), None, (2, 20, 30, 3)),
        ((2, 5, 20, 30), None, (5, 20, 30, 2)),
    ],
)
def test_axes_of_a_plain_array_are_those_it_names_or_the_usual(
    tmp_path: Path, shape: Any, names: Any, expected: Any
) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=shape, dtype="u1", chunks=shape, fill_value=1,
                      dimension_names=names)  # fmt: skip
    with open_source(tmp_path / "a.zarr") as source:
        assert (*source.shape, source.channels) == expected


def test_levels_of_an_ome_zarr_are_read(tmp_path: Path) -> None:
    data = random("uint8", 4, 100, 120)
    write_ome(tmp_path / "a.ome.zarr", [data, data[::2, ::2, ::2], data[::4, ::4, ::4]], "zyx")
    with open_source(tmp_path / "a.ome.zarr") as source:
        assert [source.level_shape(n) for n in range(3)] == [
            (4, 100, 120), (2, 50, 60), (1, 25, 30),
        ]  # fmt: skip
        np.testing.assert_array_equal(all_of(source, 1)[..., 0], data[::2, ::2, ::2])
        np.testing.assert_array_equal(all_of(source, 2)[..., 0], data[::4, ::4, ::4])


@pytest.mark.parametrize("sharded", [False, True])
def test_of_a_zarr_only_the_needed_chunks_are_read(tmp_path: Path, sharded: bool) -> None:
    data = random("uint8", 1024, 1024)
    options = {"chunks": (256, 256)} | ({"shards": (512, 512)} if sharded else {})
    write_ome(tmp_path / "a.zarr", [data], "yx", **options)
    chunks = sorted(p for p in (tmp_path / "a.zarr" / "0" / "c").rglob("*") if p.is_file())
    keep = Path("0/1") if sharded else Path("1/2")
    for path in chunks:
        if path.relative_to(tmp_path / "a.zarr" / "0" / "c") != keep:
            path.write_bytes(b"broken")
    with open_source(tmp_path / "a.zarr") as source:
        box = source.read(0, slice(300, 400), slice(520, 700))
        np.testing.assert_array_equal(box[..., 0], data[300:400, 520:700])
        with pytest.raises(InputError, match=r"a.zarr \(rows 768 to 1023, columns 0 to 255\) is d"):
            source.read(0, slice(1000, 1010), slice(0, 10))


def test_a_chunk_is_decoded_once_for_neighbouring_boxes(tmp_path: Path) -> None:
    data = random("uint8", 600, 600, 3)
    write_ome(tmp_path / "a.zarr", [data], "yxc", chunks=(64, 64, 1))
    with open_source(tmp_path / "a.zarr") as source:
        for y in range(0, 600, 100):
            source.read(0, slice(y, y + 100), slice(0, 300))
        shutil.rmtree(tmp_path / "a.zarr" / "0")
        np.testing.assert_array_equal(source.read(0, slice(0, 600), slice(0, 300)), data[:, :300])


def test_rows_of_boxes_need_each_chunk_once_and_little_is_kept(tmp_path: Path) -> None:
    data = random("uint8", 1024, 1024, 3)
    write_ome(tmp_path / "a.zarr", [data], "yxc", chunks=(256, 256, 3))
    with open_source(tmp_path / "a.zarr") as source:
        source.expect_rows(100)
        for x in range(0, 1024, 128):  # a row of boxes over two rows of chunks
            source.read(0, slice(200, 300), slice(x, x + 128))
        moved = tmp_path / "a.zarr" / "0"
        moved.rename(tmp_path / "away")
        np.testing.assert_array_equal(source.read(0, slice(200, 512), slice(0, 1024)),
                                      data[200:512])  # fmt: skip
        (tmp_path / "away").rename(moved)
        source.read(0, slice(512, 1024), slice(0, 1024))
        moved.rename(tmp_path / "away")
        np.testing.assert_array_equal(source.read(0, slice(512, 1024), slice(0, 1024)), data[512:])
        with pytest.raises(InputError):  # the rows before are forgotten
            source.read(0, slice(200, 300), slice(0, 128))


def test_low_strips_of_a_tiff_stay_for_the_whole_row_of_boxes(tmp_path: Path) -> None:
    y, x, c = np.ogrid[:3072, :8192, :3]  # beyond what is read whole
    data = (y * 13 + x * 7 + c).astype(np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, data, rowsperstrip=16, photometric="rgb", compression="zlib")
    with open_source(path) as source:
        assert isinstance(source, ChunkedImage)
        source.expect_rows(512)
        source.read(0, slice(100, 612), slice(0, 512))
        path.write_bytes(b"")  # whatever is read again now comes out wrong or fails
        for x in range(512, 8192, 512):
            box = source.read(0, slice(100, 612), slice(x, x + 512))
            np.testing.assert_array_equal(box, data[100:612, x : x + 512])


def test_a_zipped_zarr_and_an_address_are_read(tmp_path: Path) -> None:
    data = random("uint8", 3, 70, 90)
    write_ome(tmp_path / "b.ome.zarr", [data], "cyx", version="0.4")
    shutil.make_archive(str(tmp_path / "a.zarr"), "zip", tmp_path / "b.ome.zarr")
    fsspec.filesystem("memory").put(
        str(tmp_path / "b.ome.zarr"), "/there/b.ome.zarr", recursive=True
    )
    for address in (
        tmp_path / "a.zarr.zip",
        "memory://there/b.ome.zarr",
        f"file://{tmp_path / 'b.ome.zarr'}",
        f"{tmp_path / 'b.ome.zarr'}/",
    ):
        assert is_zarr(address)
        with open_source(address) as source:
            np.testing.assert_array_equal(all_of(source), np.moveaxis(data, 0, -1))
    with open_source("memory://there/b.ome.zarr/0") as plain:
        assert plain.name == "0"
        assert plain.shape == (3, 70, 90)


def test_boxes_beyond_the_image_are_refused(tmp_path: Path) -> None:
    write_ome(tmp_path / "a.zarr", [random("uint8", 40, 50)], "yx")
    tifffile.imwrite(tmp_path / "a.tif", random("uint8", 40, 50))
    for name in ("a.zarr", "a.tif"):
        with open_source(tmp_path / name) as source:
            for rows, columns, z in [
                (slice(0, 41), slice(0, 5), 0),
                (slice(-3, 5), slice(0, 5), 0),
                (slice(0, 5), slice(0, 51), 0),
                (slice(0, 5), slice(0, 5), 1),
            ]:
                with pytest.raises(IndexError):
                    source.read(z, rows, columns)


def truncate(folder: Path) -> None:
    chunk = folder / "0" / "c" / "1" / "1"
    chunk.write_bytes(chunk.read_bytes()[:100])


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("codec", ["blosc", "none", "gzip", "zstd"])
def test_a_chunk_cut_anywhere_is_never_taken_for_pixels(
    tmp_path: Path, zarr_format: Any, codec: str
) -> None:
    codecs: dict[str, Any] = {
        "blosc": {2: numcodecs.Blosc(), 3: zarr.codecs.BloscCodec()},
        "gzip": {2: numcodecs.GZip(), 3: zarr.codecs.GzipCodec()},
        "zstd": {2: numcodecs.Zstd(), 3: zarr.codecs.ZstdCodec()},
        "none": {2: None, 3: None},
    }
    zarr.create_array(tmp_path / "a.zarr", data=random("uint8", 40, 40), chunks=(40, 40),
                      zarr_format=zarr_format, compressors=codecs[codec][zarr_format])  # fmt: skip
    chunk = tmp_path / "a.zarr" / ("0.0" if zarr_format == 2 else "c/0/0")
    content = chunk.read_bytes()
    for cut in (0, 1, 10, 17, 100, len(content) - 1):
        chunk.write_bytes(content[:cut])
        with pytest.raises(InputError, match="cut short"), open_source(tmp_path / "a.zarr") as a:
            a.read_level()
    chunk.write_bytes(content)
    with open_source(tmp_path / "a.zarr") as source:
        assert source.read_level().any()


def empty(folder: Path) -> None:
    (folder / "0" / "c" / "1" / "1").write_bytes(b"")


def cut_metadata(folder: Path) -> None:
    path = folder / "0" / "zarr.json"
    path.write_text(path.read_text("utf-8")[:200], "utf-8")


def lose_metadata(folder: Path) -> None:
    (folder / "zarr.json").unlink()


def lose_array(folder: Path) -> None:
    shutil.rmtree(folder / "0")


def grow(folder: Path) -> None:
    path = folder / "0" / "zarr.json"
    path.write_text(path.read_text("utf-8").replace("32", "48"), "utf-8")


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (truncate, r"a.zarr \(rows 0 to 63, columns 0 to 63\) is damaged or cut short"),
    (empty, r"a.zarr \(rows 0 to 63, columns 0 to 63\) is damaged or cut short"),
    (cut_metadata, "a.zarr is damaged or cut short"),
    (lose_metadata, "a.zarr is not there or holds no Zarr metadata"),
    (lose_array, "a.zarr lacks '0', which its metadata names"),
    (grow, r"a.zarr \(rows 0 to 63, columns 0 to 63\) is damaged or cut short"),
    (shutil.rmtree, "a.zarr is not there"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGES, ids=lambda d: getattr(d, "__name__", ""))
def test_a_damaged_store_is_told_in_a_sentence(
    tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    write_ome(tmp_path / "a.zarr", [random("uint8", 64, 64)], "yx")
    damage(tmp_path / "a.zarr")
    with pytest.raises(InputError, match=says), open_source(tmp_path / "a.zarr") as source:
        source.read_level()


def test_a_store_that_goes_away_is_not_taken_for_a_black_image(tmp_path: Path) -> None:
    write_ome(tmp_path / "a.zarr", [random("uint8", 1000, 500)], "yx", chunks=(500, 500))
    with open_source(tmp_path / "a.zarr") as source:
        source.read(0, slice(0, 9), slice(0, 9))
        (tmp_path / "a.zarr").rename(tmp_path / "unplugged")
        with pytest.raises(InputError, match=r"a.zarr does not exist|a.zarr \(rows 500"):
            source.read(0, slice(600, 609), slice(0, 9))


def test_an_address_that_goes_away_is_not_taken_for_a_black_image(tmp_path: Path) -> None:
    write_ome(tmp_path / "a.zarr", [random("uint8", 1000, 500)], "yx", chunks=(500, 500))
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "a.zarr"), "/leaving/a.zarr", recursive=True)
    with open_source("memory://leaving/a.zarr") as source:
        source.read(0, slice(0, 9), slice(0, 9))
        memory.rm("/leaving/a.zarr", recursive=True)
        with pytest.raises(InputError, match=r"is not at its address any more"):
            source.read(0, slice(600, 609), slice(0, 9))


def test_an_empty_part_of_a_whole_store_is_black(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=(60, 60), dtype="u1", chunks=(30, 30))[:30] = 9
    with open_source(tmp_path / "a.zarr") as source:
        whole = source.read_level()[..., 0]
    assert (whole[:30] == 9).all()
    assert not whole[30:].any()
    assert probe_source(tmp_path / "a.zarr").note.startswith("a.zarr lacks 2 of its 4 chunks")


def test_a_small_zarr_is_read_whole_and_a_huge_one_is_not(tmp_path: Path) -> None:
    data = random("float64", 3, 20, 30)
    write_ome(tmp_path / "a.zarr", [data], "zyx")
    image = read_image(tmp_path / "a.zarr")
    assert (image.axes, image.dtype) == ("ZYXC", "float64")
    np.testing.assert_array_equal(image.data[..., 0], data.astype(np.float32))
    zarr.create_array(tmp_path / "b.zarr", shape=(60_000, 60_000), dtype="u1", chunks=(512, 512))
    with pytest.raises(InputError, match=r"b.zarr is too large to be opened whole \(3.4 GiB\)"):
        read_image(tmp_path / "b.zarr")


def test_a_thumbnail_comes_from_a_coarse_level(tmp_path: Path) -> None:
    data = random("uint8", 3, 800, 400)
    write_ome(tmp_path / "a.zarr", [data, data[:, ::2, ::2], data[:, ::4, ::4] // 200 + 5], "zyx")
    for chunk in (tmp_path / "a.zarr" / "0" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"broken")
    assert read_thumbnail(tmp_path / "a.zarr").shape == (96, 48, 3)


def test_a_tiff_cut_while_it_is_read_is_told(tmp_path: Path) -> None:
    for name, options in (("rows.tif", {}), ("tiles.tif", {"tile": (256, 256)})):
        path = tmp_path / name
        tifffile.imwrite(path, random("uint8", 1024, 1024), **options)
        with open_source(path, whole_below=0) as source:
            source.read(0, slice(0, 9), slice(0, 9))
            with path.open("r+b") as stream:
                stream.truncate(600_000)
            with pytest.raises(InputError, match=rf"{name} \(rows .*damaged or cut short"):
                source.read(0, slice(900, 909), slice(900, 909))


def test_nan_in_one_chunk_is_found_when_it_is_read_and_placed(tmp_path: Path) -> None:
    data = random("float32", 3, 600, 600)
    data[1, 300:302, 400] = np.nan
    write_ome(tmp_path / "a.zarr", [data], "zyx", chunks=(1, 256, 256))
    with open_source(tmp_path / "a.zarr") as source:
        source.read(1, slice(0, 256), slice(0, 256))
        says = r"a.zarr \(plane 1, rows 256 to 511, columns 256 to 511\) contains 2 NaN pixels"
        with pytest.raises(InputError, match=says):
            source.read(1, slice(256, 258), slice(256, 258))


def test_what_is_no_image_is_told(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "empty.zarr", mode="w").create_array("x", shape=(3,), dtype="u1")
    plate = zarr.open_group(tmp_path / "plate.zarr", mode="w")
    plate.attrs["ome"] = {"plate": {}}
    mask = zarr.open_group(tmp_path / "mask.zarr", mode="w")
    mask.attrs["ome"] = {"image-label": {}, "multiscales": []}
    zarr.create_array(tmp_path / "line.zarr", shape=(3,), dtype="u1")
    zarr.create_array(tmp_path / "complex.zarr", shape=(3, 3), dtype="c8")
    zarr.create_array(tmp_path / "none.zarr", shape=(0, 3), dtype="u1")
    (tmp_path / "text.zarr").write_text("hello")
    (tmp_path / "text.zarr.zip").write_text("hello")
    for address, says in {
        "empty.zarr": r"without OME-Zarr's multiscales metadata; name an array in it \(x\)",
        "plate.zarr": r"several images; name one of them, such as plate.zarr/A/1/0",
        "mask.zarr": r"holds labels \(masks\) and not an image",
        "line.zarr": "has 1 axes, named x, and so is not an image",
        "complex.zarr": "complex.zarr holds complex64 values",
        "none.zarr": "none.zarr holds no pixels",
        "text.zarr": "text.zarr is not there or holds no Zarr metadata",
        "text.zarr.zip": "text.zarr.zip is damaged or cut short",
        "gone.zarr.zip": "gone.zarr.zip does not exist",
        "gone.zarr": "gone.zarr does not exist|gone.zarr is not there",
        "gone.tif": "gone.tif does not exist",
    }.items():
        with pytest.raises(InputError, match=says) as caught:
            open_source(tmp_path / address)
        assert "\n" not in caught.value.message
    for address, says in {
        "nope://a/b.zarr": "is no address SegDesk knows",
        "memory://nothing/b.zarr": "b.zarr is not there",
        "memory://b.png": r"does not end in .zarr",
    }.items():
        with pytest.raises(InputError, match=says):
            open_source(address)


def test_the_hash_changes_with_the_pixels_and_not_with_the_place(tmp_path: Path) -> None:
    data = random("uint8", 64, 64)
    for name in ("a.zarr", "b.zarr"):
        write_ome(tmp_path / name, [data], "yx")
    before = hash_source(tmp_path / "a.zarr")
    assert hash_source(tmp_path / "b.zarr") == before
    zarr.open_group(tmp_path / "a.zarr", mode="a").create_group("labels/cells")
    assert hash_source(tmp_path / "a.zarr") == before
    data[63, 63] ^= 1
    write_ome(tmp_path / "b.zarr", [data], "yx")
    assert hash_source(tmp_path / "b.zarr") != before


def test_the_hash_of_an_address_needs_no_pixels(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    write_ome(tmp_path / "a.zarr", [random("uint8", 64, 64)], "yx")
    memory.put(str(tmp_path / "a.zarr"), "/hashed/a.zarr", recursive=True)
    before = hash_source("memory://hashed/a.zarr")
    assert hash_source("memory://hashed/a.zarr") == before
    memory.pipe_file("/hashed/a.zarr/0/c/0/0", b"other")
    assert hash_source("memory://hashed/a.zarr") != before


@pytest.mark.parametrize("levels", [1, 2])
def test_images_on_a_server_that_tells_nothing_of_its_files_are_told_apart(
    tmp_path: Path, levels: int
) -> None:
    data = random("uint8", 256, 256)
    other = data.copy()
    other[64:192, 64:192] += 1
    for name, image in (("a.zarr", data), ("b.zarr", other), ("c.zarr", data)):
        write_ome(tmp_path / name, [image, image[::2, ::2]][:levels], "yx")
    with serving(tmp_path) as server:
        first, second, third = (hash_source(f"{server.address}/{n}.zarr") for n in "abc")
    assert first != second
    assert first == third
