"""OME-Zarr images through the commands."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import tifffile
import zarr

from segdesk.inference.regions import Region
from segdesk.io.sources import read_thumbnail
from segdesk.io.store import ProjectStore
from segdesk.session.predicting import read_prediction
from segdesk.session.reviewing import read_regions
from segdesk.session.trusting import read_labelled
from slow_server import serving

Cli = Callable[..., Any]


def write_ome(folder: Path, data: np.ndarray, axes: str = "yx", chunk: int = 32) -> Path:
    group = zarr.open_group(folder, mode="w", zarr_format=2)
    told = [{"name": a, "type": "channel" if a == "c" else "space"} for a in axes]
    group.attrs["multiscales"] = [
        {"version": "0.4", "axes": told, "datasets": [{"path": "0"}, {"path": "1"}]}
    ]
    half = tuple(slice(None, None, 2) if a in "yx" else slice(None) for a in axes)
    for name, level in (("0", data), ("1", data[half])):
        group.create_array(name, data=level, chunks=tuple(min(n, chunk) for n in level.shape))
    return folder


@pytest.fixture
def ome(tmp_path: Path, discs: Callable[..., Any]) -> Path:
    """An OME-Zarr image, and the same pixels as TIFF beside it."""
    image, _ = discs(9, 96)
    tifffile.imwrite(tmp_path / "same.tif", image)
    return write_ome(tmp_path / "cells.ome.zarr", image)


@pytest.mark.parametrize("copy", [False, True])
def test_an_ome_zarr_is_added_predicted_and_learnt_from(
    project: Path, segdesk: Cli, ome: Path, tmp_path: Path, discs: Any, copy: bool
) -> None:
    masks = tmp_path / "masks2"
    masks.mkdir()
    tifffile.imwrite(masks / "cells.tif", discs(9, 96)[1] * 255)
    arguments = ["--masks", masks, *(["--copy"] if copy else [])]
    added = segdesk("add", project, ome, *arguments, "--json")
    assert added.code == 0, added.err
    assert added.json["added"] == ["cells-ome"]
    with ProjectStore.open(project) as store:
        sample = store.sample("cells-ome")
        assert (sample.shape, sample.channels, sample.dtype) == ((96, 96), 1, "uint8")
        assert sample.path == (project / "images" / "cells-ome.zarr" if copy else ome)
        assert read_thumbnail(sample.path).shape == (96, 96, 3)
    again = segdesk("add", project, ome)
    assert "is in the project already" in again.err
    done = segdesk("predict", project, "--json")
    assert done.code == 0, done.err
    labels = {r["image"]: Path(r["folder"]) / "labels.tif" for r in done.json}
    assert tifffile.imread(labels["cells.ome.zarr"]).shape == (96, 96)
    trained = segdesk("train", project, "--set", "steps=1", "--set", "crop_size=32",
                      "--set", "batch_size=1", "--set", "device=cpu")  # fmt: skip
    assert trained.code == 0, trained.err


def test_every_way_to_name_an_image_gives_the_same_labels(
    project: Path, segdesk: Cli, ome: Path, tmp_path: Path
) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(ome), "/elsewhere/far.ome.zarr", recursive=True)
    shutil.make_archive(str(tmp_path / "zipped.zarr"), "zip", ome)
    ways = [tmp_path / "same.tif", ome, tmp_path / "zipped.zarr.zip",
            "memory://elsewhere/far.ome.zarr"]  # fmt: skip
    out = tmp_path / "out"
    done = segdesk("predict", *ways, "--out", out, "--model", project / "models" / "tiny", "--json")
    assert done.code == 0, done.err
    assert [r["image"] for r in done.json] == [str(way) for way in ways]
    same = tifffile.imread(out / "same_labels.tif")
    for stem in ("cells.ome", "zipped", "far.ome"):
        labels = zarr.open_array(str(out / f"{stem}_labels.zarr"), mode="r")
        np.testing.assert_array_equal(np.asarray(labels)[0], same)
    said = json.loads((out / "far.ome_provenance.json").read_text("utf-8"))
    assert said["image"] == "memory://elsewhere/far.ome.zarr"


def test_a_folder_of_zarrs_is_a_folder_of_images(
    project: Path, segdesk: Cli, tmp_path: Path, discs: Callable[..., Any]
) -> None:
    for number in range(2):
        write_ome(tmp_path / "many" / f"n{number}.zarr", discs(20 + number)[0])
    added = segdesk("add", project, tmp_path / "many", "--json")
    assert added.json["added"] == ["n0", "n1"]


def test_an_image_on_a_server_is_added_predicted_and_learnt_from(
    project: Path, segdesk: Cli, ome: Path, tmp_path: Path, discs: Any
) -> None:
    masks = tmp_path / "masks2"
    masks.mkdir()
    tifffile.imwrite(masks / "cells.tif", discs(9, 96)[1] * 255)
    with serving(tmp_path) as server:
        address = f"{server.address}/{ome.name}"
        added = segdesk("add", project, address, "--masks", masks, "--json")
        assert added.code == 0, added.err
        assert added.json["added"] == ["cells-ome"]
        with ProjectStore.open(project) as store:
            sample = store.sample("cells-ome")
            assert (sample.path, sample.name, sample.shape) == (address, ome.name, (96, 96))
        assert "is in the project already" in segdesk("add", project, address).err
        assert segdesk("predict", project).code == 0
        segdesk("add", project, tmp_path / "same.tif")
        done = segdesk("predict", project, "--json")
        labels = {r["image"]: Path(r["folder"]) / "labels.tif" for r in done.json}
        far, near = (tifffile.imread(labels[name]) for name in (ome.name, "same.tif"))
        np.testing.assert_array_equal(far, near)
        settings = ("steps=1", "crop_size=32", "batch_size=1", "device=cpu")
        trained = segdesk("train", project, *(a for s in settings for a in ("--set", s)), "--json")
        assert trained.code == 0, trained.err
        run = trained.lines[-1]["run"]
        manifest = json.loads((project / "runs" / run / "manifest.json").read_text("utf-8"))
        assert address in [one["image"] for one in manifest["samples"]]
        assert segdesk("train", project, "--replay", run).code == 0
        write_ome(ome, discs(4, 96)[0])
        assert "put the old image back at its address" in segdesk("train", project, "--check").out
    gone = segdesk("train", project, "--check")
    assert gone.code == 2
    assert ome.name in gone.err + gone.out
    assert "is gone from" not in gone.err
    with ProjectStore.open(project) as store:
        assert store.annotation("cells-ome") is not None


def test_an_address_is_not_copied_into_a_project(project: Path, segdesk: Cli) -> None:
    refused = segdesk("add", project, "https://host/a.ome.zarr", "--copy")
    assert refused.code == 2
    assert "https://host/a.ome.zarr is not on this computer and cannot be copied" in refused.err


def test_of_addresses_only_zarr_is_added(project: Path, segdesk: Cli) -> None:
    refused = segdesk("add", project, "https://host/a.png")
    assert refused.code == 2
    assert "of addresses SegDesk reads OME-Zarr and Zarr only" in refused.err


def test_a_store_that_breaks_off_is_refused_and_leaves_nothing(
    project: Path, segdesk: Cli, ome: Path, tmp_path: Path, on_disk: Callable[..., Any]
) -> None:
    chunk = ome / "0" / "2.2"
    chunk.write_bytes(chunk.read_bytes()[:20])
    out = tmp_path / "out"
    done = segdesk("predict", ome, "--out", out, "--model", project / "models" / "tiny")
    assert done.code == 2
    assert "cells.ome.zarr (rows 0 to 95, columns 0 to 95) is damaged or cut short" in done.err
    assert not out.exists()


@pytest.mark.slow
def test_a_server_that_goes_away_keeps_what_is_done_and_is_gone_on_with(
    make_model: Callable[..., Path], segdesk: Cli, tmp_path: Path
) -> None:
    # More than is kept in memory, so that there is something to read all along.
    pixels = np.zeros((1536, 4096, 3), np.float32)
    pixels[::3, ::7] = (0.3, 0.5, 0.9)
    write_ome(tmp_path / "web" / "far.zarr", pixels.transpose(2, 0, 1), "cyx", chunk=512)
    model, out = make_model(tmp_path / "rgb", channels=3), tmp_path / "out"
    # Not auto: half precision may be the faster one in one process and not in another.
    settings = ("device=cpu", "overlap=32", "precision=single")
    command = ["--out", out, "--model", model, *(a for s in settings for a in ("--set", s))]
    noted = out / ".unfinished" / ".far.part" / "done.txt"

    def parts() -> int:
        return len(noted.read_text("utf-8").splitlines()) if noted.exists() else 0

    with serving(tmp_path / "web") as server:

        def switch_off() -> None:
            while parts() < 2:
                time.sleep(0.01)
            server.vanish()

        watching = threading.Thread(target=switch_off, daemon=True)
        watching.start()
        server.delay = 0.1
        done = segdesk("predict", f"{server.address}/far.zarr", *command)
        watching.join()
    assert done.code == 2
    assert "far.zarr (rows" in done.err
    assert "check the disk or the connection" in done.err
    kept = parts()
    assert f"The {kept} of 24 parts that are done are kept" in done.err
    assert 2 <= kept < 24
    with serving(tmp_path / "web") as server:
        again = segdesk("predict", f"{server.address}/far.zarr", *command, "--json")
    assert again.code == 0, again.err
    labels = zarr.open_array(str(out / "far_labels.zarr"), mode="r")
    whole = segdesk("predict", tmp_path / "web" / "far.zarr", "--out", tmp_path / "whole",
                    *command[2:])  # fmt: skip
    assert whole.code == 0, whole.err
    expected = zarr.open_array(str(tmp_path / "whole" / "far_labels.zarr"), mode="r")
    np.testing.assert_array_equal(np.asarray(labels), np.asarray(expected))


def test_missing_chunks_are_pointed_out(project: Path, segdesk: Cli, ome: Path) -> None:
    for name in ("1.2", "2.1"):
        (ome / "0" / name).unlink()
    says = "cells.ome.zarr lacks 2 of its 9 chunks, which count as 0"
    out = project.parent / "out"
    done = segdesk("predict", ome, "--out", out, "--model", project / "models" / "tiny", "--json")
    assert done.code == 0
    assert says in done.err
    assert says in segdesk("add", project, ome).err


@pytest.mark.parametrize("channels", [2, 17])
def test_channels_are_refused_or_chosen(
    project: Path, segdesk: Cli, tmp_path: Path, channels: int
) -> None:
    data = np.random.default_rng(0).integers(0, 255, (channels, 64, 64)).astype(np.uint8)
    image = write_ome(tmp_path / "many.zarr", data, "cyx")
    model = project / "models" / "tiny"
    refused = segdesk("predict", image, "--out", tmp_path / "out", "--model", model)
    assert refused.code == 2
    says = f"many.zarr has {channels} channels, but the model 'tiny' takes 1; say which it gets"
    assert says in refused.err
    assert "channels=0" in refused.err


def test_a_project_is_predicted_at_a_level_and_results_are_of_full_size(
    project: Path, segdesk: Cli, ome: Path, tmp_path: Path, discs: Callable[..., Any]
) -> None:
    (tmp_path / "true").mkdir()
    tifffile.imwrite(tmp_path / "true" / "cells.tif", discs(9, 96)[1] * 255)
    segdesk("add", project, ome, "--masks", tmp_path / "true")
    done = segdesk("predict", project, "--level", 5, "--json")
    assert done.code == 0, done.err
    folders = {r["image"]: Path(r["folder"]) for r in done.json}
    made = {
        name: json.loads((folder / "provenance.json").read_text("utf-8"))
        for name, folder in folders.items()
    }
    # The coarsest that each has.
    assert made["cells.ome.zarr"]["level"] == 1
    assert made["cells.ome.zarr"]["shape"] == [1, 48, 48]
    assert made["cell0.png"]["level"] == 0
    again = segdesk("predict", project, "--level", 1, "--json")
    assert all(result.get("skipped") for result in again.json)
    with ProjectStore.open(project, read_only=True) as store:
        sample = store.sample("cells-ome")
        prediction = store.prediction(sample.id, "tiny")
        assert prediction is not None
        expected = np.kron(tifffile.imread(prediction.labels_path), np.ones((2, 2), np.uint8))
        np.testing.assert_array_equal(read_prediction(prediction, sample.shape)[0], expected)
        own = [Region(**r) for r in json.loads((prediction.folder / "regions.json").read_text())]
        regions = read_regions(prediction, sample.shape)
        assert [(r.y, r.x, r.height, r.width) for r in regions] == [
            (2 * r.y, 2 * r.x, 2 * r.height, 2 * r.width) for r in own
        ]
        # What the pixels of a person's labels are judged by is theirs.
        ((probabilities, truth),) = read_labelled(store, sample, prediction)
        np.testing.assert_array_equal(truth, discs(9, 96)[1].ravel())
        maps = np.asarray(zarr.open_array(str(prediction.probabilities_path), mode="r"))
        maps = np.kron(maps[:, 0], np.ones((1, 2, 2), np.float32)).reshape(2, -1)
        np.testing.assert_allclose(probabilities, maps, atol=1e-3)
    refined = segdesk("refine", project, "--image", "cells-ome", "--json")
    assert refined.code == 0, refined.err
    assert tifffile.imread(Path(refined.json[0]["folder"]) / "labels.tif").shape == (48, 48)
