"""What each command does and says when all is well."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from segdesk.core.sample import Status
from segdesk.io.store import ProjectStore

Cli = Callable[..., Any]
TINY = ("--set", "steps=2", "--set", "crop_size=32", "--set", "batch_size=2", "--set", "device=cpu")


def test_a_project_from_nothing_to_a_better_model(
    project: Path, segdesk: Cli, tmp_path: Path
) -> None:
    """The main job, command by command, as a script would do it."""
    status = segdesk("status", project, "--json").json
    assert status["images"] == 5
    assert status["statuses"] == {"accepted": 5}
    assert status["validation"] == 1
    assert status["model"] == "tiny"
    assert status["classes"] == ["background", "nucleus"]

    predicted = segdesk("predict", project, "--json")
    assert predicted.code == 0, predicted.err
    assert [r["image"] for r in predicted.json] == [f"cell{n}.png" for n in range(5)]
    assert all((Path(r["folder"]) / "labels.tif").is_file() for r in predicted.json)
    scores = {s["name"]: s["score"] for s in segdesk("status", project, "--json").json["samples"]}
    assert scores == {r["image"]: r["unsure"] for r in predicted.json}

    trained = segdesk("train", project, "--recipe", "decoder", *TINY, "--json")
    assert trained.code == 0, trained.err
    *events, last = trained.lines
    assert {"run", "state", "model", "before", "after"} <= last.keys()
    assert last["state"] == "completed"
    assert last["model"] == "tiny-r1"
    assert last["before"]["n"] == last["after"]["n"] == 1
    assert [e["event"] for e in events if e["event"] in ("step", "finished")] == [
        "step", "step", "finished",
    ]  # fmt: skip
    config = json.loads((project / "runs" / last["run"] / "config.json").read_text("utf-8"))
    assert (config["recipe"], config["steps"]) == ("decoder", 2)

    judged = segdesk("evaluate", project, "--model", "tiny-r1", "--json").json
    assert judged["model"] == "tiny-r1"
    assert judged["dice"] == pytest.approx(last["after"]["dice"])
    assert {"dice", "iou", "pixel_accuracy", "per_class", "per_image", "n"} <= judged.keys()
    assert segdesk("status", project, "--json").json["model"] == "tiny"
    assert segdesk("models", "use", "tiny-r1", "--project", project).code == 0
    assert segdesk("evaluate", project, "--json").json["model"] == "tiny-r1"
    runs = segdesk("status", project, "--json").json["runs"]
    assert [(r["state"], r["model"]) for r in runs] == [("completed", "tiny-r1")]


def test_train_can_use_the_new_model_at_once(project: Path, segdesk: Cli) -> None:
    done = segdesk("train", project, "--use", *TINY)
    assert done.code == 0, done.err
    assert "Made tiny-r1. Validation Dice" in done.out
    assert segdesk("status", project, "--json").json["model"] == "tiny-r1"


def test_a_run_that_fails_says_so_once(project: Path, segdesk: Cli, tmp_path: Path) -> None:
    (tmp_path / "images" / "cell0.png").write_bytes(b"")
    done = segdesk("train", project, *TINY)
    assert done.code == 2
    assert done.err.count("cell0.png is empty") == 1
    again = segdesk("train", project, *TINY, "--json")
    assert again.code == 2
    assert again.lines[-1]["state"] == "failed"
    assert again.lines[-1]["model"] is None
    assert "cell0.png is empty" in again.lines[-1]["reason"]


def test_images_alone_can_be_predicted(project: Path, segdesk: Cli, tmp_path: Path) -> None:
    out, model = tmp_path / "results", project / "models" / "tiny"
    for kind in ("margin", "entropy"):  # the second run replaces the first
        done = segdesk("predict", tmp_path / "images", "--out", out, "--model", model,
                       "--uncertainty", kind, "--json")  # fmt: skip
        assert done.code == 0, done.err
    assert len(done.json) == 5
    assert sorted(p.name for p in out.iterdir()) == sorted(
        f"cell{n}_{part}"
        for n in range(5)
        for part in ("labels.tif", "uncertainty.tif", "probabilities.zarr", "provenance.json")
    )
    labels = tifffile.imread(out / "cell0_labels.tif")
    maps = np.asarray(zarr.open_array(str(out / "cell0_probabilities.zarr"), mode="r"))
    assert labels.shape == (64, 64)
    assert maps.shape == (2, 1, 64, 64)
    said = json.loads((out / "cell0_provenance.json").read_text("utf-8"))
    assert said["config"]["uncertainty"] == "entropy"
    assert said["model"] == "tiny"


def test_a_model_can_be_judged_on_folders(project: Path, segdesk: Cli, tmp_path: Path) -> None:
    model = project / "models" / "tiny"
    done = segdesk("evaluate", "--model", model, "--images", tmp_path / "images",
                   "--masks", tmp_path / "masks", "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["n"] == 5
    assert {e["image"] for e in done.json["per_image"]} == {f"cell{n}.png" for n in range(5)}
    plain = segdesk("evaluate", "--model", model, "--images", tmp_path / "images",
                    "--masks", tmp_path / "masks")  # fmt: skip
    assert f"Dice {done.json['dice']:.4f}" in plain.out
    assert f"mean IoU {done.json['dataset']['mean_iou']:.4f}" in plain.out
    assert "means over background, nucleus" in plain.out
    [line] = [line for line in plain.out.splitlines() if "of each image by itself" in line]
    figures = dict(part.rsplit(" ", 1) for part in line.partition(": ")[2].split(", "))
    names = ("pixel accuracy", "mean accuracy", "mean IoU", "frequency weighted IoU", "mean Dice")
    means = done.json["image_means"]
    assert figures == {name: f"{means[name.lower().replace(' ', '_')]:.4f}" for name in names}
    assert means != done.json["dataset"]
    assert "objects" not in done.json
    judged = segdesk("evaluate", "--model", model, "--images", tmp_path / "images",
                     "--masks", tmp_path / "masks", "--instances", "--json")  # fmt: skip
    objects = judged.json["objects"]
    assert objects["per_class"]["nucleus"]["objects"] > 0
    assert 0 <= objects["panoptic_quality"] <= 1
    shown = segdesk("evaluate", "--model", model, "--images", tmp_path / "images",
                    "--masks", tmp_path / "masks", "--instances")  # fmt: skip
    assert f"Rand error {objects['rand_error']:.4f}" in shown.out
    assert f"warping error {objects['warping_error']:.6f}" in shown.out
    assert "Objects, the connected pieces of nucleus" in shown.out


def test_add_says_how_masks_were_read(
    segdesk: Cli, disc_files: Callable[..., list[Path]], tmp_path: Path
) -> None:
    disc_files(3)
    segdesk("new", tmp_path / "q", "--classes", "background,nucleus")
    added = segdesk("add", tmp_path / "q", tmp_path / "images", "--masks", tmp_path / "masks",
                    "--copy", "--json")  # fmt: skip
    assert added.code == 0, added.err
    assert added.json["added"] == ["cell0", "cell1", "cell2"]
    assert added.json["validation"] == 1
    assert added.json["notes"][0].startswith("cell0.png: 0/255 mask")
    assert len(list((tmp_path / "q.segdesk" / "images").iterdir())) == 3
    again = segdesk("add", tmp_path / "q", tmp_path / "images")
    assert again.code == 0
    assert "is in the project already" in again.err
    assert "Added no image." in again.out
    segdesk("new", tmp_path / "one", "--classes", "background,nucleus")
    alone = segdesk("add", tmp_path / "one", tmp_path / "images" / "cell0.png")
    assert alone.out.strip() == "Added 1 image, not held back to check models."
    three = segdesk("add", tmp_path / "one", tmp_path / "images")
    assert "Added 2 images, 1 of them held back" in three.out


def test_files_of_other_kinds_in_a_folder_are_named(
    segdesk: Cli, disc_files: Callable[..., list[Path]], make_model: Callable[..., Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    folder = disc_files(1)[0].parent
    for name in ("slide.czi", "notes.txt", ".hidden", "Thumbs.db"):
        (folder / name).write_text("x")
    segdesk("new", tmp_path / "q", "--classes", "background,nucleus")
    words = "images: 2 files are not of a kind SegDesk reads and passed over (.czi, .txt)."
    assert words in segdesk("add", tmp_path / "q", folder).err
    model = make_model(tmp_path / "tiny")
    out = tmp_path / "out"
    assert words in segdesk("predict", folder, "--out", out, "--model", model).err
    (folder / "cell0.png").unlink()
    none = segdesk("add", tmp_path / "q", folder)
    assert none.code == 2
    assert "holds no images; SegDesk reads .png, " in none.err


@pytest.mark.slow
def test_models_are_listed_and_shown(project: Path, segdesk: Cli) -> None:
    listed = segdesk("models", "list", "--project", project, "--json").json
    models = {m["name"]: m for m in listed["models"]}
    assert models["tiny"]["in_use"]
    assert models["nuclei-unet"]["license"] == ["CC0-1.0"]
    assert [a["name"] for a in listed["architectures"]].count("unet") == 1
    shown = segdesk("models", "show", "nuclei-unet", "--json").json
    assert shown["stride"] == 16
    assert shown["deviations"]
    assert "* tiny" in segdesk("models", "list", "--project", project).out
    assert "nuclei-unet" in segdesk("models", "show", "nuclei-unet").out


def test_review_names_the_most_uncertain(project: Path, segdesk: Cli, tmp_path: Path) -> None:
    assert "nothing left to look at" in segdesk("review", project).out
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(3):
        path = tmp_path / f"new{number}.png"
        Image.fromarray(random.integers(0, 255, (64, 64), np.uint8)).save(path)
        segdesk("add", project, path)
    segdesk("predict", project)
    found = segdesk("review", project, "--next", 2, "--json").json
    scores = {s["name"]: s["score"] for s in segdesk("status", project, "--json").json["samples"]
              if s["name"].startswith("new")}  # fmt: skip
    assert [f["image"] for f in found] == sorted(scores, key=lambda n: -scores[n])[:2]


def test_doctor_speaks_for_people_and_for_programs(segdesk: Cli) -> None:
    findings = {f["what"]: f for f in segdesk("doctor", "--json").json}
    assert findings["torch"]["is_fine"]
    assert {"Python", "torch", "Graphics card", "Memory", "Disk"} <= findings.keys()
    assert all(f["is_fine"] or f["advice"] for f in findings.values() if f["what"] != "Disk")
    assert "Python" in segdesk("doctor").out


def test_a_killed_run_is_closed_by_the_next_one(project: Path, segdesk: Cli) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "segdesk", "train", str(project), "--json", *TINY,
         "--set", "steps=100000"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    while '"step"' not in child.stdout.readline():
        assert child.poll() is None
    child.kill()
    child.communicate()
    with ProjectStore.open(project) as store:
        assert [str(r.state) for r in store.runs()] == ["running"]
    assert segdesk("train", project, *TINY).code == 0
    runs = segdesk("status", project, "--json").json["runs"]
    assert [r["state"] for r in runs] == ["crashed", "completed"]


def test_the_program_starts_as_a_module_and_knows_its_version() -> None:
    from segdesk import __version__

    command = [sys.executable, "-m", "segdesk", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"segdesk {__version__}"
    wrong = subprocess.run(
        [sys.executable, "-m", "segdesk", "statsu"], capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert wrong.stderr == (
        "There is no project or command 'statsu'; did you mean 'segdesk status'?\n"
    )


def test_review_names_images_and_places_in_them(project: Path, segdesk: Cli) -> None:
    with ProjectStore.open(project) as store:
        for sample in store.samples():
            store.replace_sample(replace(sample, status=Status.PREDICTED))
    before = segdesk("review", project, "--next", 2, "--json").json
    assert [entry["regions"] for entry in before] == [[], []]
    assert segdesk("predict", project, "--uncertainty", "entropy").code == 0
    told = segdesk("review", project, "--next", 2, "--json").json
    assert len(told) == 2
    for entry in told:
        (place,) = entry["regions"]  # the images are as small as a place
        assert (place["y"], place["x"], place["height"], place["width"]) == (0, 0, 64, 64)
        with ProjectStore.open(project) as store:
            folder = store.prediction(entry["id"], "tiny").folder  # type: ignore[union-attr]
        values = tifffile.imread(folder / "uncertainty.tif")
        assert place["mean"] == pytest.approx(values.mean(), abs=1e-5)
    shown = segdesk("review", project, "--next", 1).out.splitlines()
    assert shown[0].startswith(f"{told[0]['image']}: the model is unsure of")
    mean = told[0]["regions"][0]["mean"]
    assert shown[1].strip() == f"x 0 to 64, y 0 to 64: mean uncertainty {mean:.1%}"


def test_an_ensemble_of_files_needs_companions(
    segdesk: Cli, tmp_path: Path, disc_files: Callable[..., list[Path]],
    make_model: Callable[..., Path],
) -> None:  # fmt: skip
    model, out = make_model(tmp_path / "tiny"), tmp_path / "out"
    done = segdesk("predict", disc_files(1)[0], "--model", model, "--out", out,
                   "--uncertainty", "ensemble")  # fmt: skip
    assert done.code == 2
    assert "name some under Companions (companions=NAME,NAME)" in done.err
    assert not out.exists()
