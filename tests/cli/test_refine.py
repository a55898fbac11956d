"""``segdesk refine``: the current predictions with refined edges, and back."""

from __future__ import annotations

import json
import re
import shutil
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
OnDisk = Callable[[Path], dict[str, str]]


@pytest.fixture
def predicted(project: Path, segdesk: Cli) -> Path:
    assert segdesk("predict", project).code == 0
    return project


def labels_in_use(project: Path, image: str) -> np.ndarray:
    with ProjectStore.open(project, read_only=True) as store:
        row = store.prediction(store.sample(image).id, "tiny", weights_of(project))
        assert row is not None
        return tifffile.imread(row.labels_path)


def weights_of(project: Path) -> str:
    card = json.loads((project / "models" / "tiny" / "card.json").read_text("utf-8"))
    return str(card["weights_sha256"])


def test_refined_labels_are_used_and_the_models_own_come_back(
    predicted: Path, segdesk: Cli, on_disk: OnDisk
) -> None:
    own = labels_in_use(predicted, "cell0.png")
    before = on_disk(predicted / "predictions")
    done = segdesk("refine", predicted, "--image", "cell0.png", "--set", "appearance_weight=9",
                   "--json")  # fmt: skip
    assert done.code == 0, done.err
    (result,) = done.json
    refined = labels_in_use(predicted, "cell0.png")
    assert result["image"] == "cell0.png"
    assert result["changed"] == pytest.approx((refined != own).mean())
    assert result["changed"] > 0
    folder = Path(result["folder"])
    np.testing.assert_array_equal(refined, tifffile.imread(folder / "labels.tif"))
    maps = np.asarray(zarr.open_array(str(folder / "probabilities.zarr"), mode="r"))
    np.testing.assert_allclose(maps.astype(np.float32).sum(0), 1, atol=2e-3)
    said = json.loads((folder / "provenance.json").read_text("utf-8"))
    assert said["model"] == "tiny"
    assert said["refinement"]["config"]["appearance_weight"] == 9

    after = on_disk(predicted / "predictions")
    assert before.items() <= after.items(), "the model's own prediction is untouched"
    assert not [name for name in after if "preview" in name]

    again = segdesk("refine", predicted, "--image", "cell0.png", "--set", "appearance_weight=9",
                    "--json")  # fmt: skip
    assert again.json[0]["changed"] == result["changed"], "it starts from the model's own"
    assert segdesk("refine", predicted, "--undo").code == 0
    np.testing.assert_array_equal(labels_in_use(predicted, "cell0.png"), own)
    assert segdesk("refine", predicted, "--image", "cell0.png").code == 0
    assert segdesk("predict", predicted).code == 0
    np.testing.assert_array_equal(labels_in_use(predicted, "cell0.png"), own)


def test_without_names_every_predicted_image_is_refined(predicted: Path, segdesk: Cli) -> None:
    done = segdesk("refine", predicted, "--set", "iterations=2")
    assert done.code == 0, done.err
    assert len(re.findall(r"cell\d.png: \d+\.\d\d% of the pixels changed", done.out)) == 5


def test_a_stack_keeps_its_shape(
    segdesk: Cli, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    stack = np.random.default_rng(0).integers(0, 250, (3, 40, 50)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    folder = tmp_path / "s.segdesk"
    assert segdesk("new", folder, "--classes", "background,nucleus").code == 0
    assert segdesk("add", folder, tmp_path / "stack.tif").code == 0
    make_model(folder / "models" / "tiny")
    assert segdesk("models", "use", "tiny", "--project", folder).code == 0
    assert segdesk("predict", folder).code == 0
    assert segdesk("refine", folder).code == 0
    assert labels_in_use(folder, "stack.tif").shape == (3, 40, 50)


# Bad input ------------------------------------------------------------------


@pytest.fixture
def refused(segdesk: Cli, on_disk: OnDisk, tmp_path: Path) -> Callable[..., None]:
    def check(says: str, *arguments: object) -> None:
        before = on_disk(tmp_path)
        answer = segdesk("refine", *arguments)
        assert answer.code == 2, answer.err
        assert re.search(says, answer.err.splitlines()[-1]), answer.err
        assert answer.out == ""
        assert on_disk(tmp_path) == before

    return check


def test_an_image_that_was_not_predicted(
    project: Path, refused: Callable[..., None], segdesk: Cli, tmp_path: Path
) -> None:
    refused("has predicted no image of this project yet; run 'segdesk predict p.segdesk'", project)
    assert segdesk("predict", project).code == 0
    new = tmp_path / "new.png"
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(new)
    assert segdesk("add", project, new).code == 0
    says = "model in use has not predicted new.png yet; predict it first"
    refused(says, project, "--image", "new.png")
    refused(says, project, "--image", "cell0.png", "--image", "new.png")
    refused("no image cel0.png; did you mean cell0.png", project, "--image", "cel0.png")


def test_an_image_or_a_prediction_that_is_gone(
    predicted: Path, refused: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "images" / "cell0.png").unlink()
    refused("cell0.png is not there any more; put it back", predicted)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "images" / "cell0.png")
    refused("another size than when it was predicted; predict it again", predicted)
    (folder,) = (predicted / "predictions").glob("cell1*/tiny-*")
    chunk = next(p for p in (folder / "probabilities.zarr" / "c").rglob("*") if p.is_file())
    chunk.unlink()
    says = "probabilities that the model predicted for cell1.png are missing or damaged"
    refused(says, predicted, "--image", "cell1.png")
    shutil.rmtree(folder / "probabilities.zarr")
    refused(says, predicted, "--image", "cell1.png")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["appearance_pxx=3"], "no setting called 'appearance_pxx'"),
        (["appearance_grey=0"], r"Brightness difference \(appearance_grey\) cannot be '0'"),
        (["iterations"], "write it as name=value"),
    ],
)
def test_a_setting_that_is_wrong(
    predicted: Path, refused: Callable[..., None], settings: list[str], says: str
) -> None:
    refused(says, predicted, *(part for s in settings for part in ("--set", s)))


def test_a_full_disk_loses_nothing(
    predicted: Path, segdesk: Cli, tmpfs: Callable[..., Path], on_disk: OnDisk
) -> None:
    disk = tmpfs("size=3m")
    there = disk / "p.segdesk"
    shutil.copytree(predicted, there)
    (disk / "filler").write_bytes(b"x" * (shutil.disk_usage(disk).free - 12_000))
    before = on_disk(there)
    answer = segdesk("refine", there)
    assert answer.code == 2, answer.err
    assert "is full; free some space" in answer.err.splitlines()[-1]
    # On a full disk SQLite cannot take back what it keeps beside a database it looks at.
    beside = {"project.db-wal", "project.db-shm"}
    after = on_disk(there).items()
    assert {name: content for name, content in after if name not in beside} == before
    (disk / "filler").unlink()
    assert segdesk("refine", there).code == 0
