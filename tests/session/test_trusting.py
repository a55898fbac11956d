"""What stored predictions say of a model, what is kept of it, and what it changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from segdesk.cli import run
from segdesk.config.inference import InferenceConfig
from segdesk.core.errors import InputError
from segdesk.core.prediction import Prediction, UncertaintyKind
from segdesk.core.sample import Split
from segdesk.io.calibrations import calibration_file, read_calibration, write_calibration
from segdesk.io.packages import hash_weights
from segdesk.io.store import ProjectStore
from segdesk.session import trusting
from segdesk.session.correcting import Correction
from segdesk.session.models import find_model
from segdesk.session.predicting import cost, request, uncertainty_kind
from segdesk.session.projects import NewImage, add_images
from segdesk.session.session import Session
from segdesk.session.trusting import Answer, Scope, TrustReader
from segdesk.training.inline import InlineBackend

Draw = Callable[..., tuple[np.ndarray, np.ndarray]]
CPU = InferenceConfig(device="cpu")


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    pass


@pytest.fixture
def judged(
    session: Session, tmp_path: Path, discs: Draw, make_model: Callable[..., Path]
) -> Session:
    """Four accepted images, three of them held back, and a model called tiny in use."""
    make_model(session.store.folder / "models" / "tiny", seed=2)
    new = []
    for seed in range(4):
        path = tmp_path / f"cell{seed}.png"
        Image.fromarray(discs(seed)[0]).save(path)
        new.append(NewImage(path, split=Split.VALIDATION if seed else Split.TRAIN))
    for seed, sample in enumerate(add_images(session, new).samples):
        accept(session, sample.id, discs(seed)[1])
    session.store.set("current_model", "tiny")
    session.attach(InlineBackend(session.handle))
    return session


def accept(session: Session, sample: str, labels: np.ndarray) -> None:
    correction = Correction(session, session.store.sample(sample))
    correction.replace(labels, "truth")
    correction.accept()


def predict(session: Session, config: InferenceConfig = CPU, model: str = "tiny") -> Prediction:
    """Predict all images; returns the prediction of the last."""
    request(session, session.store.samples(), config, model)
    sample = session.store.samples()[-1]
    found = session.store.prediction(sample.id, model)
    assert found is not None
    return found


def ask(session: Session, scope: Scope = Scope.HELD_BACK, model: str | None = None) -> Answer:
    return TrustReader().ask(session.store.folder, model, scope)


def maps(prediction: Prediction) -> np.ndarray:
    return np.asarray(zarr.open_array(str(prediction.probabilities_path), mode="r"), np.float64)


def provenance(prediction: Prediction) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((prediction.folder / "provenance.json").read_text("utf-8"))
    return said


def keep(session: Session, **values: Any) -> None:
    """Keep what was found, or something else where a value is given."""
    answer = ask(session)
    assert answer.findings is not None
    kept = answer.findings.as_calibration(answer.model, answer.weights_sha256)
    write_calibration(session.store.folder, kept.model_copy(update=values))


def command_line(project: Path, capsys: pytest.CaptureFixture[str], *more: str) -> Any:
    """Return what 'segdesk trust --json' says."""
    capsys.readouterr()
    assert run(["trust", str(project), "--device", "cpu", "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


def assert_alike(said: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal but for what half precision takes away."""
    for key in ("images", "pixels", "learnt", "best"):
        assert said[key] == expected[key]
    assert said["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-3)
    for key in ("ece_before", "ece_after"):
        assert said["calibration"][key] == pytest.approx(expected["calibration"][key], abs=1e-3)
    assert said["calibration"]["temperature"] == pytest.approx(
        expected["calibration"]["temperature"], rel=0.01
    )
    for kind, scores in expected["uncertainty"].items():
        for key in ("auroc", "aurc", "share_of_errors"):
            assert said["uncertainty"][kind][key] == pytest.approx(scores[key], abs=2e-3)
    for key in ("wrong", "right"):
        assert said["band"][key] == pytest.approx(expected["band"][key], abs=5e-3)


def test_stored_predictions_say_what_the_command_line_says(
    judged: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(judged)
    findings = ask(judged).findings
    assert findings is not None
    assert_alike(findings.as_dict(), command_line(judged.store.folder, capsys))


def test_a_kept_temperature_changes_probabilities_but_not_labels(
    judged: Session, reopen: Callable[[], Session], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = predict(judged)
    before, labels = maps(plain), tifffile.imread(plain.labels_path)
    assert provenance(plain)["temperature"] == 1.0
    keep(judged, temperature=2.5)
    calibrated = predict(judged)
    said = provenance(calibrated)
    assert said["temperature"] == 2.5
    expected = before ** (1 / 2.5)
    np.testing.assert_allclose(maps(calibrated), expected / expected.sum(0), atol=2e-3)
    assert np.abs(maps(calibrated) - before).max() > 0.02
    np.testing.assert_array_equal(tifffile.imread(calibrated.labels_path), labels)
    # What is fitted anew is fitted on what the model itself says, as on the command line.
    findings = ask(judged).findings
    assert findings is not None
    assert_alike(findings.as_dict(), command_line(judged.store.folder, capsys))
    # The user may do without.
    np.testing.assert_allclose(
        maps(predict(judged, CPU.model_copy(update={"calibrated": False}))), before
    )
    # Another day it is still there.
    again = reopen()
    again.attach(InlineBackend(again.handle))
    assert provenance(predict(again))["temperature"] == 2.5


def test_a_kept_temperature_is_ignored_for_other_weights(
    judged: Session, make_model: Callable[..., Path]
) -> None:
    predict(judged)
    keep(judged, temperature=2.5)
    folder = judged.store.folder / "models" / "tiny"
    old = hash_weights(folder)
    shutil.rmtree(folder)
    make_model(folder, seed=5)
    new = hash_weights(folder)
    assert provenance(predict(judged))["temperature"] == 1.0
    # Nor by another model's file of the same name.
    shutil.copy(
        calibration_file(judged.store.folder, "tiny", old),
        calibration_file(judged.store.folder, "tiny", new),
    )
    assert provenance(predict(judged))["temperature"] == 1.0
    assert ask(judged).kept is None


def test_evidence_chooses_the_kind_of_uncertainty(judged: Session) -> None:
    assert InferenceConfig().uncertainty is UncertaintyKind.AUTO
    margin = provenance(predict(judged))
    assert margin["config"]["uncertainty"] == "margin"
    keep(judged, kind=UncertaintyKind.ENTROPY)
    chosen = predict(judged)
    assert provenance(chosen)["config"]["uncertainty"] == "entropy"
    p = maps(chosen)[:, 0]
    entropy = -(p * np.log(np.maximum(p, 1e-12))).sum(0) / np.log(2)
    np.testing.assert_allclose(tifffile.imread(chosen.uncertainty_path), entropy, atol=5e-3)
    # A kind that was asked for stays.
    asked = CPU.model_copy(update={"uncertainty": UncertaintyKind.MARGIN})
    assert provenance(predict(judged, asked))["config"]["uncertainty"] == "margin"


def test_the_kind_that_is_kept_is_the_one_that_finds_most(judged: Session) -> None:
    predict(judged)
    answer = ask(judged)
    assert answer.findings is not None
    kept = trusting.keep(judged.store.folder, answer.model, answer.weights_sha256, answer.findings)
    assert kept.kind is not None
    rounded = {kind: round(value or 0, 4) for kind, value in kept.auroc.items()}
    assert rounded[kept.kind] == max(rounded.values())
    entry = find_model("tiny", judged.store)
    assert read_calibration(judged.store.folder, "tiny", hash_weights(entry.folder)) == kept


def test_a_bundled_model_can_be_calibrated_too(judged: Session) -> None:
    """Its folder belongs to the program and may not be written to."""
    predict(judged, model="nuclei-unet")
    answer = ask(judged, model="nuclei-unet")
    assert answer.findings is not None
    calibration = answer.findings.as_calibration("nuclei-unet", answer.weights_sha256)
    write_calibration(judged.store.folder, calibration.model_copy(update={"temperature": 1.7}))
    assert provenance(predict(judged, model="nuclei-unet"))["temperature"] == 1.7
    assert provenance(predict(judged))["temperature"] == 1.0


def test_only_labelled_pixels_of_the_images_asked_for_count(judged: Session) -> None:
    predict(judged)
    held_back, labelled = ask(judged).findings, ask(judged, Scope.LABELLED).findings
    assert held_back is not None
    assert labelled is not None
    assert (held_back.images, held_back.pixels) == (3, 3 * 64 * 64)
    assert (labelled.images, labelled.pixels) == (4, 4 * 64 * 64)
    # A part of an image only was spoken about.
    sample = judged.store.samples()[3]
    Correction(judged, sample).take_back()
    annotation = judged.store.annotation(sample.id)
    assert annotation is not None
    spoken = int((annotation.supervision > 0).sum())
    findings = ask(judged).findings
    assert findings is not None
    assert findings.pixels == 2 * 64 * 64 + spoken
    assert 0 < spoken < 64 * 64


def test_an_image_that_changed_is_counted_anew(judged: Session, discs: Draw) -> None:
    reader = TrustReader()

    def wrong() -> int:
        findings = reader.ask(judged.store.folder, None, Scope.HELD_BACK).findings
        assert findings is not None
        return findings.wrong

    predict(judged)
    first = wrong()
    assert wrong() == first
    sample = judged.store.samples()[2]
    accept(judged, sample.id, 1 - discs(2)[1])
    second = wrong()
    assert second != first
    # A stroke that is in no revision yet counts, and so does taking it back.
    correction = Correction(judged, judged.store.sample(sample.id))
    correction.replace(discs(2)[1], "truth")
    assert wrong() == first
    correction.undo()
    assert wrong() == second


def test_what_is_missing_is_named(judged: Session) -> None:
    ids = [s.id for s in judged.store.samples()]
    answer = ask(judged)
    assert answer.findings is None
    assert answer.missing == tuple(ids[1:])
    assert "has not predicted" in answer.reason
    request(judged, judged.store.samples()[:2], CPU)
    answer = ask(judged)
    assert answer.findings is not None
    assert answer.findings.images == 1
    assert answer.missing == tuple(ids[2:])
    with pytest.raises(InputError, match="There is no model called 'tyni'"):
        ask(judged, model="tyni")


def test_nothing_is_kept_where_no_temperature_fits(judged: Session) -> None:
    predict(judged)
    for sample in judged.store.samples():
        found = judged.store.prediction(sample.id, "tiny")
        assert found is not None
        accept(judged, sample.id, tifffile.imread(found.labels_path))
    answer = ask(judged)
    assert answer.findings is not None
    assert answer.findings.wrong == 0
    with pytest.raises(InputError, match="No temperature fits tiny: almost no pixel is wrong"):
        trusting.keep(judged.store.folder, "tiny", answer.weights_sha256, answer.findings)
    assert not (judged.store.folder / "calibration").exists()


def test_damaged_files_are_told_of(judged: Session) -> None:
    prediction = predict(judged)
    keep(judged)
    shutil.rmtree(prediction.probabilities_path)
    answer = ask(judged)
    assert answer.findings is None
    assert "is damaged; predict that image again" in answer.reason
    weights = hash_weights(find_model("tiny", judged.store).folder)
    calibration_file(judged.store.folder, "tiny", weights).write_text('{"model": 3}', "utf-8")
    with pytest.raises(InputError, match="delete it, or run 'segdesk trust PROJECT --keep'"):
        predict(judged)


def test_the_command_line_keeps_and_tells(
    judged: Session, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["trust", str(judged.store.folder), "--keep"]) == 2
    assert "open in another" in capsys.readouterr().err
    project = tmp_path / "copy.segdesk"
    shutil.copytree(judged.store.folder, project)
    kept = command_line(project, capsys, "--keep")["kept"]
    shown = ["models", "show", "tiny", "--project", str(project)]
    capsys.readouterr()
    assert run([*shown, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["calibration"] == kept
    assert run(shown) == 0
    said = capsys.readouterr().out
    assert f"calibration: temperature {kept['temperature']:.2f}, kept in this project" in said
    assert "uncertainty: margin" in said
    assert run(["predict", str(project), "--device", "cpu"]) == 0
    with ProjectStore.open(project, read_only=True) as store:
        found = store.prediction(store.samples()[0].id, "tiny")
    assert found is not None
    assert provenance(found)["temperature"] == kept["temperature"]
    slow = command_line(project, capsys, "--keep", "--kinds", "augmentation")["kept"]
    assert slow["kind"] == "augmentation"
    assert list(slow["auroc"]) == ["augmentation"]
    assert run(["predict", str(project), "--device", "cpu"]) == 0
    with ProjectStore.open(project, read_only=True) as store:
        samples = store.samples()
        made = store.prediction(samples[0].id, "tiny")
        assert cost(Session(store), samples, InferenceConfig()).passes == 8
    assert made is not None
    assert uncertainty_kind(made) is UncertaintyKind.AUGMENTATION
    for extra in (["--against", "tiny"], ["--images", "x", "--masks", "y"]):
        assert run(["trust", str(project), "--keep", *extra]) == 2
        assert "--keep is for one model in a project" in capsys.readouterr().err
