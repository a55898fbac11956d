"""``segdesk trust`` on real small images, with models of known honesty."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from segdesk.config.inference import InferenceConfig
from segdesk.inference.calibration import auroc
from segdesk.inference.predictor import Predictor
from segdesk.io.images import hash_file, read_image
from segdesk.io.packages import hash_weights
from segdesk.nn.weights import load_model
from segdesk.session.sample_project import sample_folder

Cli = Callable[..., Any]
COUNT = 6


def change_weights(folder: Path, name: str, to: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change the output layer of a package, and what its card says of the weights."""
    file = folder / "weights.safetensors"
    weights = {k: to(v) if ".output." in k else v for k, v in load_file(file).items()}
    assert any(".output." in key for key in weights)
    save_file(weights, file)
    edit_card(folder, name=name, weights_sha256=hash_weights(folder))


def edit_card(folder: Path, **values: Any) -> None:
    card = json.loads((folder / "card.json").read_text("utf-8"))
    (folder / "card.json").write_text(json.dumps(card | values), "utf-8")


def probabilities(model: Path, image: Path) -> np.ndarray:
    loaded = load_model(model)
    predictor = Predictor(loaded, torch.device("cpu"))
    plane = predictor.prepare(read_image(image).data)
    return predictor.predict_plane(plane, InferenceConfig())


def draw_masks(model: Path, images: list[Path], masks: Path, classes: int = 2) -> None:
    """Draw each pixel's true class as probable as the model says: then it is honest."""
    random = np.random.default_rng(0)
    scale = 255 if classes == 2 else 1
    for path in images:
        levels = probabilities(model, path).cumsum(0)[:-1]
        truth = (random.random(levels.shape[1:]) > levels).sum(0).astype(np.uint8)
        Image.fromarray(truth * scale).save(masks / path.name)


@pytest.fixture
def honest(
    tmp_path: Path, make_model: Callable[..., Path], disc_files: Callable[..., list[Path]]
) -> Path:
    """Return a model whose probabilities are exactly those of the masks beside it."""
    model = make_model(tmp_path / "honest", seed=2)
    draw_masks(model, disc_files(COUNT), tmp_path / "masks")
    return model


@pytest.fixture
def loud(tmp_path: Path, honest: Path) -> Path:
    """Return the same model with logits times 5: far too sure."""
    folder = tmp_path / "loud"
    shutil.copytree(honest, folder)
    change_weights(folder, "loud", lambda weight: weight * 5)
    return folder


@pytest.fixture
def judged(segdesk: Cli, tmp_path: Path) -> Callable[..., Any]:
    """Judge a model on the images and masks of the test."""

    def call(model: Path, *more: object) -> Any:
        done = segdesk("trust", "--model", model, "--images", tmp_path / "images",
                       "--masks", tmp_path / "masks", *more)  # fmt: skip
        assert done.code == 0, done.err
        return done

    return call


def test_a_model_that_is_too_sure_is_found_out_and_mended(
    honest: Path, loud: Path, judged: Callable[..., Any]
) -> None:
    good, bad = judged(honest, "--json").json, judged(loud, "--json").json
    assert good["calibration"]["temperature"] == pytest.approx(1, rel=0.06)
    assert good["calibration"]["ece_before"] < 0.03
    assert bad["calibration"]["temperature"] == pytest.approx(5, rel=0.06)
    assert bad["calibration"]["ece_before"] > 0.1
    assert bad["calibration"]["ece_after"] < 0.03
    assert [h["images"] for h in bad["calibration"]["halves"]] == [3, 3]
    # Being louder changes nothing in what is wrong, nor in which pixels are less sure.
    assert bad["wrong"] == good["wrong"]
    for kind in ("margin", "entropy"):
        scores = [r["uncertainty"][kind]["auroc"] for r in (good, bad)]
        assert scores[0] == pytest.approx(scores[1], abs=2e-3)
    # But its wrong pixels lie further from a half.
    assert bad["band"]["wrong"] < good["band"]["wrong"]
    said = judged(loud).out
    assert re.search(r"surer than it may be \(temperature (4\.[789]|5\.[0123])", said)
    assert "That temperature helps" in said
    assert "as sure as it may be" in judged(honest).out


def test_the_answer_is_the_same_each_time(loud: Path, judged: Callable[..., Any]) -> None:
    assert judged(loud, "--json").out == judged(loud, "--json").out


def test_a_temperature_is_never_judged_on_the_images_it_was_fitted_on(
    honest: Path, loud: Path, judged: Callable[..., Any], tmp_path: Path
) -> None:
    """Every other image has a truth the loud model is right about: two temperatures."""
    images = sorted((tmp_path / "images").iterdir())
    draw_masks(loud, images[1::2], tmp_path / "masks")
    first, second = judged(loud, "--json").json["calibration"]["halves"]
    # The first half, which needs 5, is judged with what the second half needs.
    assert first["temperature"] == pytest.approx(1, rel=0.1)
    assert second["temperature"] == pytest.approx(5, rel=0.1)
    assert first["ece_after"] == pytest.approx(first["ece_before"], abs=0.02)
    assert second["ece_after"] > second["ece_before"] + 0.05
    assert "That temperature helps" not in judged(loud).out


def test_the_figures_are_those_of_the_pixels(
    honest: Path, judged: Callable[..., Any], segdesk: Cli, tmp_path: Path
) -> None:
    report = judged(honest, "--band", "0.3,0.7", "--json").json
    images = sorted((tmp_path / "images").iterdir())
    maps = np.stack([probabilities(honest, path) for path in images], 1)
    truth = np.stack([np.asarray(Image.open(tmp_path / "masks" / p.name)) // 255 for p in images])
    is_wrong = maps.argmax(0) != truth
    inside = (maps[1] >= 0.3) & (maps[1] < 0.7)
    assert report["images"] == COUNT
    assert report["pixels"] == truth.size
    assert report["wrong"] == is_wrong.sum()
    assert report["band"]["wrong"] == pytest.approx(inside[is_wrong].mean(), abs=2e-3)
    assert report["band"]["right"] == pytest.approx(inside[~is_wrong].mean(), abs=2e-3)
    nucleus = report["histograms"]["classes"]["nucleus"]
    assert sum(nucleus["wrong"]) == (is_wrong & (truth == 1)).sum()
    assert sum(nucleus["right"]) == (~is_wrong & (truth == 1)).sum()
    assert nucleus["wrong_within"] == pytest.approx(
        inside[is_wrong & (truth == 1)].mean(), abs=2e-3
    )
    unsure = 1 - np.abs(maps[1] - maps[0]).ravel()
    order = np.argsort(unsure)[-truth.size // 10 :]
    share = is_wrong.ravel()[order].sum() / is_wrong.sum()
    scores = report["uncertainty"][report["best"]]
    assert scores["share_of_errors"] == pytest.approx(share, abs=5e-3)
    assert scores["risk_coverage"]["risk"][-1] == pytest.approx(is_wrong.mean())
    evaluated = segdesk("evaluate", "--model", honest, "--images", tmp_path / "images",
                        "--masks", tmp_path / "masks", "--json").json  # fmt: skip
    assert report["accuracy"] == pytest.approx(evaluated["pixel_accuracy"])
    said = re.search(
        r"([\d.]+) % of the wrong pixels have a probability of nucleus between 0.3 and 0.7; "
        r"([\d.]+) % of the right ones do",
        judged(honest, "--band", "0.3,0.7").out,
    )
    assert said is not None
    for number, key in enumerate(("wrong", "right"), 1):
        assert float(said[number]) == pytest.approx(100 * report["band"][key], abs=0.5)


def test_kinds_of_several_passes_are_judged_with_the_mask_they_make(
    honest: Path, judged: Callable[..., Any], segdesk: Cli, tmp_path: Path
) -> None:
    """The figures are those of the files that ``predict`` writes with that kind."""
    report = judged(honest, "--kinds", "augmentation, margin", "--json").json
    assert list(report["uncertainty"]) == ["margin", "augmentation"]
    plain = judged(honest, "--json").json
    for key in ("wrong", "calibration", "histograms"):
        assert report[key] == plain[key], "all but the uncertainty is said of one pass"
    assert report["uncertainty"]["margin"] == plain["uncertainty"]["margin"]
    done = segdesk("predict", tmp_path / "images", "--model", honest, "--out", tmp_path / "out",
                   "--set", "uncertainty=augmentation")  # fmt: skip
    assert done.code == 0, done.err
    unsure, is_wrong = [], []
    for path in sorted((tmp_path / "images").iterdir()):
        labels, values = (
            tifffile.imread(tmp_path / "out" / f"{path.stem}_{what}.tif")
            for what in ("labels", "uncertainty")
        )
        truth = np.asarray(Image.open(tmp_path / "masks" / path.name)) // 255
        unsure.append(values.ravel())
        is_wrong.append((labels != truth).ravel())
    found = report["uncertainty"]["augmentation"]
    together = np.concatenate(unsure), np.concatenate(is_wrong)
    assert found["auroc"] == pytest.approx(auroc(*together), abs=2e-3)
    assert found["risk_coverage"]["risk"][-1] == pytest.approx(together[1].mean())
    said = judged(honest, "--kinds", "margin,augmentation").out
    assert re.search(
        r"(margin|augmentation) finds them best \(margin [\d.]+ %, augmentation [\d.]+ %\)", said
    )


def test_pixels_nobody_spoke_about_do_not_count(
    honest: Path, loud: Path, judged: Callable[..., Any], tmp_path: Path
) -> None:
    whole = judged(honest, "--json").json
    for path in (tmp_path / "masks").iterdir():
        mask = np.asarray(Image.open(path)) // 255
        mask[:16] = 255
        Image.fromarray(mask).save(path)
    part = judged(honest, "--json").json
    assert part["pixels"] == whole["pixels"] * 48 // 64
    assert part["wrong"] < whole["wrong"]


def test_two_models_side_by_side(
    honest: Path, loud: Path, judged: Callable[..., Any], tmp_path: Path
) -> None:
    both = judged(honest, "--against", loud, "--json").json
    assert (both["model"], both["against"]["model"]) == ("honest", "loud")
    alone = judged(loud, "--json").json
    assert alone["against"] is None
    assert both["against"] == {k: v for k, v in alone.items() if k != "against"}
    table = judged(honest, "--against", loud).out
    row = next(line for line in table.splitlines() if "temperature (1:" in line)
    assert [float(v) for v in row.split()[-2:]] == [
        pytest.approx(r["calibration"]["temperature"], abs=0.005) for r in (both, alone)
    ]


def test_the_picture_shows_right_and_wrong_pixels_of_each_class(
    honest: Path, loud: Path, judged: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "new" / "trust.svg"
    judged(honest, "--against", loud, "--picture", file)
    root = ElementTree.parse(file).getroot()
    shapes = [(e.tag.rpartition("}")[2], e.get("fill"), e.get("stroke")) for e in root.iter()]
    texts = [e.text for e in root.iter() if e.tag.endswith("text")]
    for color in ("#2f9e6b", "#d9483b"):
        assert shapes.count(("path", color, color)) == 2 * 3
    assert sum(tag == "polyline" for tag, _, _ in shapes) == 2 * 2
    assert texts.count("truly nucleus") == 2
    assert {"honest", "loud"} <= set(texts)


def test_names_are_kept_from_breaking_the_picture(
    tmp_path: Path, make_model: Callable[..., Path], disc_files: Callable[..., list[Path]],
    judged: Callable[..., Any],
) -> None:  # fmt: skip
    model = make_model(tmp_path / "m", classes=("<b> & co", "nucleus"))
    disc_files(2)
    judged(model, "--picture", tmp_path / "p.svg")
    texts = [e.text for e in ElementTree.parse(tmp_path / "p.svg").iter()]
    assert "truly <b> & co" in texts


def test_three_classes_are_told_by_the_true_one(
    tmp_path: Path, make_model: Callable[..., Path], disc_files: Callable[..., list[Path]],
    judged: Callable[..., Any],
) -> None:  # fmt: skip
    model = make_model(tmp_path / "three", classes=("background", "a", "b"), seed=3)
    draw_masks(model, disc_files(4), tmp_path / "masks", classes=3)
    report = judged(model, "--json").json
    assert report["histograms"]["of"] is None
    assert list(report["histograms"]["classes"]) == ["background", "a", "b"]
    assert report["calibration"]["temperature"] == pytest.approx(1, rel=0.1)
    assert sum(report["histograms"]["all"]["wrong"]) == report["wrong"]
    assert report["best"] == max(
        report["uncertainty"], key=lambda k: report["uncertainty"][k]["auroc"]
    )
    said = judged(model).out
    assert "a probability of their true class between 0.2 and 0.8" in said
    assert f"{report['best']} finds them best (margin " in said


def test_one_image_cannot_be_checked_crosswise(project: Path, segdesk: Cli) -> None:
    """A project's validation images: here there is one."""
    report = segdesk("trust", project, "--json").json
    assert report["model"] == "tiny"
    assert report["images"] == 1
    assert not report["calibration"]["is_cross_checked"]
    assert report["calibration"]["ece_after"] is None
    said = segdesk("trust", project)
    assert said.code == 0, said.err
    assert "cannot be checked with one image" in said.out


def test_the_planes_of_a_stack_are_one_image(
    honest: Path, judged: Callable[..., Any], tmp_path: Path
) -> None:
    import tifffile

    images = sorted((tmp_path / "images").iterdir())
    masks = sorted((tmp_path / "masks").iterdir())
    for paths in (images, masks):
        stack = np.stack([np.asarray(Image.open(path)) for path in paths])
        for path in paths:
            path.unlink()
        tifffile.imwrite(paths[0].with_suffix(".tif"), stack, photometric="minisblack")
    report = judged(honest, "--json").json
    assert report["images"] == 1
    assert report["pixels"] == COUNT * 64 * 64
    assert not report["calibration"]["is_cross_checked"]


def test_images_a_model_learnt_from_are_pointed_out(
    honest: Path, judged: Callable[..., Any], tmp_path: Path
) -> None:
    assert "learnt" not in judged(honest).out
    seen = [hash_file(tmp_path / "images" / f"cell{n}.png") for n in (0, 3)]
    edit_card(honest, trained_ids=seen)
    assert judged(honest, "--json").json["learnt"] == 2
    assert "honest learnt from 2 of the 6 images" in judged(honest).out


def test_a_model_without_a_wrong_pixel(
    honest: Path, loud: Path, judged: Callable[..., Any], tmp_path: Path
) -> None:
    for path in (tmp_path / "images").iterdir():
        mask = probabilities(honest, path).argmax(0).astype(np.uint8)
        Image.fromarray(mask * 255).save(tmp_path / "masks" / path.name)
    report = judged(honest, "--json").json
    assert report["wrong"] == 0
    assert report["best"] is None
    assert report["band"]["wrong"] is None
    assert "No pixel is wrong" in judged(honest, "--picture", tmp_path / "p.svg").out
    assert "none" in judged(honest, "--against", loud).out


@pytest.mark.parametrize("kind", ["fluorescence", "stained"])
def test_the_shipped_models_uncertainty_is_judged_on_images_it_knows_and_others(
    kind: str, segdesk: Cli, tmp_path: Path
) -> None:
    """What the layer is for; on stained images, new to it, the model is sure and wrong."""
    source = sample_folder()
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        for path in sorted((source / part).glob(f"{kind}-0[1-3].*")):
            shutil.copy(path, tmp_path / part)
    here = ("--images", tmp_path / "images", "--masks", tmp_path / "masks")
    done = segdesk("trust", *here, "--json")
    assert done.code == 0, done.err
    assert done.json["model"] == "nuclei-unet"
    scores, band = done.json["uncertainty"]["margin"], done.json["band"]
    is_known = kind == "fluorescence"
    if is_known:
        assert scores["auroc"] > 0.85
        assert scores["share_of_errors"] > 0.5
    assert (scores["auroc"] > 0.5) is is_known
    assert (band["wrong"] > 5 * band["right"]) is is_known
    assert ("its uncertainty misleads" in segdesk("trust", *here).out) is not is_known


@pytest.fixture
def refused(
    segdesk: Cli, on_disk: Callable[[Path], dict[str, str]], tmp_path: Path
) -> Callable[..., None]:
    """Run the command, which must refuse with one sentence and write nothing."""

    def check(says: str, *arguments: object) -> None:
        before = on_disk(tmp_path)
        answer = segdesk("trust", *arguments)
        assert answer.code == 2, answer.err
        sentences = [s for s in answer.err.splitlines() if not re.match(r"Judging .*: \d+ of", s)]
        assert len(sentences) == 1, answer.err
        assert says in sentences[0]
        assert answer.out == ""
        assert on_disk(tmp_path) == before

    return check


def test_bad_input_is_refused(
    honest: Path, refused: Callable[..., None], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    here = ("--images", tmp_path / "images", "--masks", tmp_path / "masks")
    model = ("--model", honest)
    for band in ("0.2", "0.2,x", "0.6,0.8", "0.8,0.2", "-1,2", "nan,0.8", "0.2,0.8,0.9"):
        refused("is not two probabilities with 0.5 between them", *model, *here, "--band", band)
    for kinds in ("", "margin,", "ensemble", "auto", "augmentations"):
        refused("is none that can be compared; choose of", *model, *here, "--kinds", kinds)
    refused("has no dropout", *model, *here, "--kinds", "dropout")
    refused("is an SVG", *model, *here, "--picture", tmp_path / "p.png")
    refused("Give --images FOLDER and --masks FOLDER together", *model, *here[:2])
    refused("Name a project, or give --images", *model)
    refused("There is no model called 'honst'", *here, "--model", "honst")
    refused("There is no model called 'nothing'", *model, *here, "--against", "nothing")
    other = make_model(tmp_path / "other", classes=("background", "tumour"))
    refused("knows background, tumour; they cannot be compared", *model, *here, "--against", other)
    (tmp_path / "images" / "cell1.png").write_bytes(b"")
    refused("cell1.png is empty", *model, *here)


def test_images_without_a_labelled_pixel_are_refused(
    honest: Path, refused: Callable[..., None], tmp_path: Path
) -> None:
    for path in (tmp_path / "masks").iterdir():
        Image.fromarray(np.full((64, 64), 2, np.uint8)).save(path)
    refused("No pixel of these images is labelled", "--model", honest,
            "--images", tmp_path / "images", "--masks", tmp_path / "masks")  # fmt: skip


def test_a_model_that_gives_no_numbers_is_refused(
    honest: Path, refused: Callable[..., None], tmp_path: Path
) -> None:
    change_weights(honest, "honest", lambda weight: weight * float("nan"))
    refused("'honest' gives no numbers", "--model", honest,
            "--images", tmp_path / "images", "--masks", tmp_path / "masks")  # fmt: skip
