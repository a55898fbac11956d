"""``segdesk predict`` on many images: what is done is kept, and not done twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from segdesk.io.store import ProjectStore

Cli = Callable[..., Any]
Waiter = Callable[..., None]
PARTS = ("labels.tif", "uncertainty.tif", "probabilities.zarr", "provenance.json")


@pytest.fixture
def model(tmp_path: Path, make_model: Callable[..., Path]) -> Path:
    return make_model(tmp_path / "tiny")


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("*_labels.tif")}


def test_what_is_done_is_skipped_until_something_that_decides_changes(
    segdesk: Cli, tmp_path: Path, model: Path, disc_files: Callable[..., list[Path]],
    discs: Callable[..., Any],
) -> None:  # fmt: skip
    images, out = disc_files(3), tmp_path / "out"
    command = ["predict", tmp_path / "images", "--out", out, "--model", model]
    first = segdesk(*command, "--json")
    assert first.code == 0, first.err
    assert names(out) == sorted(f"cell{n}_{part}" for n in range(3) for part in PARTS)
    before = times(out)

    again = segdesk(*command, "--json", "--device", "cpu")
    assert [r["skipped"] for r in again.json] == [True] * 3
    assert [r["unsure"] for r in again.json] == [r["unsure"] for r in first.json]
    assert again.json[0]["labels"] == str(out / "cell0_labels.tif")
    assert times(out) == before
    assert segdesk(*command).out.startswith(f"{images[0]}: already done")

    Image.fromarray(discs(77)[0]).save(images[1])
    (out / "cell2_uncertainty.tif").unlink()
    changed = segdesk(*command, "--json")
    assert ["skipped" in r for r in changed.json] == [True, False, False]
    assert [r["image"] for r in changed.json] == [str(image) for image in images]
    for more in (["--uncertainty", "entropy"], ["--again", "--uncertainty", "entropy"]):
        assert not any("skipped" in r for r in segdesk(*command, *more, "--json").json)
    assert set(times(out).values()).isdisjoint(before.values())


def test_other_weights_do_it_anew(
    segdesk: Cli, tmp_path: Path, make_model: Callable[..., Path],
    disc_files: Callable[..., list[Path]],
) -> None:  # fmt: skip
    (image,) = disc_files(1)
    for seed in (1, 2):
        shutil.rmtree(tmp_path / "tiny", ignore_errors=True)
        model = make_model(tmp_path / "tiny", seed=seed)
        done = segdesk("predict", image, "--out", tmp_path / "out", "--model", model, "--json")
        assert "skipped" not in done.json[0]


def test_patterns_that_no_shell_has_filled_in(
    segdesk: Cli, tmp_path: Path, model: Path, disc_files: Callable[..., list[Path]]
) -> None:
    disc_files(3)
    (tmp_path / "images" / "deep").mkdir()
    (tmp_path / "images" / "cell2.png").rename(tmp_path / "images" / "deep" / "cell2.png")
    command = ["--out", tmp_path / "out", "--model", model]
    done = segdesk("predict", tmp_path / "images" / "*.png", tmp_path / "images" / "cell0.png",
                   *command, "--json")  # fmt: skip
    assert [Path(r["image"]).name for r in done.json] == ["cell0.png", "cell1.png"]
    deep = segdesk("predict", tmp_path / "images" / "**" / "*.png", *command, "--json")
    assert [Path(r["image"]).name for r in deep.json] == ["cell0.png", "cell1.png", "cell2.png"]
    nothing = segdesk("predict", tmp_path / "*.czi", *command)
    assert nothing.code == 2
    assert "No file fits the pattern" in nothing.err


def test_a_bad_image_does_not_keep_the_others_from_being_done(
    segdesk: Cli, tmp_path: Path, model: Path, disc_files: Callable[..., list[Path]]
) -> None:
    disc_files(3)
    (tmp_path / "images" / "cell1.png").write_bytes(b"")
    out = tmp_path / "out"
    command = ["predict", tmp_path / "images", "--out", out, "--model", model]
    done = segdesk(*command, "--json")
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith(
        "2 of 3 images are done, and 1 could not be predicted: cell1.png is empty"
    )
    assert ["failed" in r for r in done.json] == [False, True, False]
    assert names(out) == sorted(f"cell{n}_{part}" for n in (0, 2) for part in PARTS)


def test_what_is_wrong_with_all_is_said_once(
    segdesk: Cli, tmp_path: Path, model: Path, disc_files: Callable[..., list[Path]]
) -> None:
    disc_files(5)
    weights = model / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    done = segdesk("predict", tmp_path / "images", "--out", tmp_path / "out", "--model", model)
    assert done.code == 2
    assert done.err.count("are damaged") == 1
    assert not (tmp_path / "out").exists()


def test_a_project_does_only_what_is_new(
    project: Path, segdesk: Cli, tmp_path: Path, discs: Callable[..., Any]
) -> None:
    assert segdesk("predict", project).code == 0
    assert all(r["skipped"] for r in segdesk("predict", project, "--json").json)
    Image.fromarray(discs(50)[0]).save(tmp_path / "new.png")
    assert segdesk("add", project, tmp_path / "new.png").code == 0
    done = segdesk("predict", project, "--json").json
    assert [r["image"] for r in done if "skipped" not in r] == ["new.png"]
    assert len(done) == 6
    assert not any("skipped" in r for r in segdesk("predict", project, "--again", "--json").json)
    assert segdesk("predict", project, "--set", "tile_size=64", "--set", "overlap=16").code == 0
    with ProjectStore.open(project) as store:
        folder = store.prediction("new", "tiny").folder  # type: ignore[union-attr]
    assert json.loads((folder / "provenance.json").read_text("utf-8"))["config"]["tile_size"] == 64


def test_a_coarser_level_and_zarr_out(
    segdesk: Cli, tmp_path: Path, model: Path, discs: Callable[..., Any]
) -> None:
    image, _ = discs(3, 96)
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    axes = [{"name": a, "type": "space"} for a in "yx"]
    group.attrs["multiscales"] = [
        {"version": "0.4", "axes": axes, "datasets": [{"path": "0"}, {"path": "1"}]}
    ]
    for name, data in (("0", image), ("1", image[::2, ::2])):
        group.create_array(name, data=data, chunks=(32, 32))
    command = ["predict", tmp_path / "a.zarr", "--out", tmp_path / "out", "--model", model]
    for level, side in ((1, 48), (0, 96)):
        done = segdesk(*command, "--level", level, "--json")
        assert done.code == 0, done.err
        assert "skipped" not in done.json[0]
        for part in ("labels", "uncertainty", "probabilities"):
            found = zarr.open_array(tmp_path / "out" / f"a_{part}.zarr", mode="r")
            assert found.shape[-2:] == (side, side)
    wrong = segdesk(*command, "--level", 2)
    assert wrong.code == 2
    assert "a.zarr has 2 resolution levels, so there is no level 2" in wrong.err
    assert len(list((tmp_path / "out").iterdir())) == 4, "the last good result is kept"


def first_count(told: str) -> int:
    """Return how many tiles were done when a run first told of them."""
    return int(told.split("Predicting: ", 1)[1].split(" of ")[0])


def written(folder: Path, lines: list[str]) -> dict[str, int]:
    """Return when each recorded chunk of the probabilities was written."""
    places = ["/".join(line.split()[:3]) for line in lines]
    chunks = folder / "c" / "0"
    return {place: (chunks / place).stat().st_mtime_ns for place in places}


@pytest.mark.slow
def test_a_large_image_is_gone_on_with_after_a_kill(
    segdesk: Cli, tmp_path: Path, model: Path, wait_until: Waiter
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (1100, 700), np.uint8)
    tifffile.imwrite(tmp_path / "big.tif", pixels)
    out = tmp_path / "out"
    settings = ["--model", str(model), "--device", "cpu"]
    for setting in ("tile_size=64", "overlap=16", "precision=single"):
        settings += ["--set", setting]
    command = [sys.executable, "-m", "segdesk", "predict", str(tmp_path / "big.tif")]
    command += ["--out", str(out), *settings]
    part = out / ".unfinished" / ".big.part"
    record = part / "done.txt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as child:
        wait_until(lambda: record.is_file() and record.read_text("utf-8"), 120, "a chunk")
        child.kill()
    kept = record.read_text("utf-8").splitlines()
    assert 0 < len(kept) < 6
    assert names(out) == [".unfinished"]
    before = written(part / "probabilities.zarr", kept)

    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert names(out) == sorted(f"big_{part}" for part in PARTS)
    assert written(out / "big_probabilities.zarr", kept) == before, "not written twice"
    whole = segdesk("predict", tmp_path / "big.tif", "--out", tmp_path / "whole", *settings)
    assert whole.code == 0
    assert first_count(done.stderr) > first_count(whole.err), "fewer tiles the second time"
    for name in ("big_labels.tif", "big_uncertainty.tif"):
        found, expected = (tifffile.imread(folder / name) for folder in (out, tmp_path / "whole"))
        np.testing.assert_allclose(found, expected, atol=1e-5)
