"""From an image file to the files a user finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import zarr
from PIL import Image

from segdesk import __version__
from segdesk.config.inference import InferenceConfig
from segdesk.core.errors import CanceledError, InputError
from segdesk.core.prediction import Prediction
from segdesk.inference.predictor import Predictor
from segdesk.inference.results import Watch, predict_to_folder
from segdesk.inference.sampling import make_sampler
from segdesk.io.images import hash_file
from segdesk.jobs.cancel import CancelToken
from segdesk.jobs.messages import PredictOrder
from segdesk.nn.weights import load_model

MakeModel = Callable[..., Path]


def predict(
    image: Path,
    model: Path,
    out: Path,
    *,
    classes: tuple[str, ...] = ("background", "nucleus"),
    token: CancelToken | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **config: Any,
) -> Prediction:
    order = PredictOrder(
        job="j", sample="s", image=image, image_sha256=hash_file(image), model="m",
        model_folder=model, classes=classes, out=out, config=InferenceConfig(**config),
    )  # fmt: skip
    loaded = load_model(model)
    predictor = Predictor(loaded, torch.device("cpu"))
    sampler = make_sampler(order.config.uncertainty, [predictor.network])
    watch = Watch(check=(token or CancelToken()).check, progress=progress)
    return predict_to_folder(order, loaded, predictor, sampler, watch)


def write(path: Path, shape: tuple[int, ...], dtype: str = "uint8") -> Path:
    data = np.random.default_rng(0).integers(0, 250, shape).astype(dtype)
    if path.suffix == ".png":
        Image.fromarray(data).save(path)
    else:
        tifffile.imwrite(path, data, photometric="minisblack")
    return path


@pytest.mark.parametrize(
    ("shape", "suffix"), [((40, 70), ".png"), ((3, 20, 33), ".tif"), ((1, 1), ".png")]
)
def test_all_four_results_are_written_with_the_images_shape(
    tmp_path: Path, make_model: MakeModel, shape: tuple[int, ...], suffix: str
) -> None:
    image = write(tmp_path / f"i{suffix}", shape)
    classes = ("background", "a", "b")
    model = make_model(tmp_path / "m", classes=classes)
    done = predict(image, model, tmp_path / "out" / "x", classes=classes)
    labels = tifffile.imread(done.labels_path)
    unsure = tifffile.imread(done.uncertainty_path)
    maps = np.asarray(zarr.open_array(str(done.probabilities_path), mode="r"))
    assert sorted(p.name for p in done.folder.iterdir()) == [
        "labels.tif", "probabilities.zarr", "provenance.json", "regions.json", "uncertainty.tif",
    ]  # fmt: skip
    assert (labels.shape, labels.dtype) == (shape, np.uint8)
    assert (unsure.shape, unsure.dtype) == (shape, np.float32)
    assert maps.shape == (3, *((1,) * (3 - len(shape))), *shape)
    np.testing.assert_allclose(maps.sum(0), 1, atol=2e-3)
    # Half precision may turn a near tie over.
    assert (maps.argmax(0).reshape(shape) == labels).mean() > 0.99
    top = np.sort(maps.astype(np.float32), 0)
    np.testing.assert_allclose(unsure, (1 - top[2] + top[1]).reshape(shape), atol=2e-3)
    assert done.score == pytest.approx(float((unsure > 0.5).mean()), abs=0.02)


def test_provenance_is_enough_to_do_it_again(tmp_path: Path, make_model: MakeModel) -> None:
    image, model = write(tmp_path / "i.png", (80, 90)), make_model(tmp_path / "m")
    config = {"tile_size": 64, "overlap": 16, "uncertainty": "entropy"}
    done = predict(image, model, tmp_path / "out", **config)
    said = json.loads((done.folder / "provenance.json").read_text("utf-8"))
    assert said["image"] == str(image)
    assert said["image_sha256"] == hash_file(image)
    assert said["weights_sha256"] == load_model(model).weights_sha256
    assert said["segdesk_version"] == __version__
    assert said["config"] == InferenceConfig(**config).model_dump(mode="json")
    assert said["temperature"] == 1.0
    assert said["device"] == "cpu"
    assert said["seconds"] > 0
    again = predict(image, model, tmp_path / "again", **said["config"])
    assert again.labels_path.read_bytes() == done.labels_path.read_bytes()
    assert again.uncertainty_path.read_bytes() == done.uncertainty_path.read_bytes()


def test_values_are_the_projects_whatever_the_models_order(
    tmp_path: Path, make_model: MakeModel
) -> None:
    image = write(tmp_path / "i.png", (32, 32))
    model = make_model(tmp_path / "m", classes=("background", "b"))
    plain = predict(image, model, tmp_path / "1", classes=("background", "b"))
    shuffled = predict(image, model, tmp_path / "2", classes=("a", "b", "c", "background"))
    lookup = np.array([3, 1], np.uint8)
    expected = lookup[tifffile.imread(plain.labels_path)]
    np.testing.assert_array_equal(tifffile.imread(shuffled.labels_path), expected)
    with pytest.raises(InputError, match=r"knows the classes background, b, but this project has"):
        predict(image, model, tmp_path / "3", classes=("background", "x"))
    assert not (tmp_path / "3").exists()


@pytest.mark.parametrize("at", [0, 3])
def test_cancelling_leaves_nothing(tmp_path: Path, make_model: MakeModel, at: int) -> None:
    token = CancelToken()

    def progress(done: int, total: int) -> None:
        assert total > 4
        if done == at:
            token.cancel()

    image, model = write(tmp_path / "i.png", (200, 200)), make_model(tmp_path / "m")
    (tmp_path / "out").mkdir()
    with pytest.raises(CanceledError):
        predict(
            image,
            model,
            tmp_path / "out" / "x",
            token=token,
            progress=progress,
            tile_size=64,
            overlap=16,
        )
    assert list((tmp_path / "out").iterdir()) == []


def test_a_new_prediction_replaces_the_old_one_whole(tmp_path: Path, make_model: MakeModel) -> None:
    model, out = make_model(tmp_path / "m"), tmp_path / "out" / "x"
    predict(write(tmp_path / "i.png", (40, 40)), model, out)
    done = predict(write(tmp_path / "i.png", (20, 30)), model, out)
    assert tifffile.imread(done.labels_path).shape == (20, 30)
    assert [p.name for p in out.parent.iterdir()] == ["x"]


def test_progress_counts_all_tiles_of_all_planes_once(
    tmp_path: Path, make_model: MakeModel
) -> None:
    seen: list[tuple[int, int]] = []
    image, model = write(tmp_path / "i.tif", (2, 100, 70)), make_model(tmp_path / "m")
    predict(
        image, model, tmp_path / "o", progress=lambda *a: seen.append(a), tile_size=64, overlap=16
    )
    total = seen[-1][1]
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {t for _, t in seen} == {total}


def test_tiles_far_apart_agree_with_the_whole(tmp_path: Path, make_model: MakeModel) -> None:
    """Seams: where tiles were blended, labels must be as without tiles, nearly everywhere."""
    image, model = write(tmp_path / "i.png", (300, 300)), make_model(tmp_path / "m")
    whole = predict(image, model, tmp_path / "1", tile_size=512, overlap=64)
    tiled = predict(image, model, tmp_path / "2", tile_size=192, overlap=96)
    first, second = (tifffile.imread(p.uncertainty_path) for p in (whole, tiled))
    assert np.abs(first - second).mean() < 0.02


@pytest.mark.parametrize(
    ("mode", "takes"), [("L", 1), ("L", 3), ("RGB", 3), ("RGBA", 3), ("LA", 1)]
)
def test_alpha_does_not_count_and_grey_fits_every_model(
    tmp_path: Path, make_model: MakeModel, mode: str, takes: int
) -> None:
    bands = len(Image.new(mode, (1, 1)).getbands())
    data = np.random.default_rng(0).integers(0, 250, (32, 32, bands)).astype(np.uint8)
    Image.fromarray(data.squeeze(), mode).save(tmp_path / "i.png")
    model = make_model(tmp_path / "m", channels=takes)
    done = predict(tmp_path / "i.png", model, tmp_path / "out")
    assert tifffile.imread(done.labels_path).shape == (32, 32)


def test_a_two_channel_image_needs_a_two_channel_model(
    tmp_path: Path, make_model: MakeModel
) -> None:
    data = np.random.default_rng(0).integers(0, 250, (2, 32, 32)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "i.tif", data, imagej=True, metadata={"axes": "CYX"})
    fits = make_model(tmp_path / "two", channels=2)
    assert predict(tmp_path / "i.tif", fits, tmp_path / "out").labels_path.is_file()
    with pytest.raises(InputError, match=r"i\.tif has 2 channels, but the model 'm' takes 3"):
        predict(tmp_path / "i.tif", make_model(tmp_path / "m", channels=3), tmp_path / "no")
    assert not (tmp_path / "no").exists()
