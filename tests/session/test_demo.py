"""The main job on the bundled sample, from the command line, as a user starts it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdesk.io.masks import read_mask
from segdesk.io.store import ProjectStore
from segdesk.session.predicting import read_prediction
from segdesk.session.sample_project import sample_images


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_learns_stained_nuclei_without_forgetting_fluorescence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "segdesk", "demo", "--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    before, after = report["before"], report["after"]
    assert after["stained"]["dice"] >= 0.75 > before["stained"]["dice"]
    assert after["fluorescence"]["dice"] >= before["fluorescence"]["dice"] - 0.03

    # None of the judged images was learnt from or chose the weights.
    judged = {image.name for image in sample_images() if image.role == "judge"}
    manifest = json.loads(
        (Path(report["project"]) / "runs" / report["run"] / "manifest.json").read_text()
    )
    assert not judged & {sample["id"] for sample in manifest["samples"]}

    # The figures are those of the files: recompute one from the masks on disk.
    with ProjectStore.open(Path(report["project"])) as store:
        entry = after["stained"]["per_image"][0]
        sample = store.sample(entry["image"])
        prediction = store.prediction(sample.id, report["model_after"])
        assert prediction is not None
        assert sample.reference is not None
        labels, _ = read_prediction(prediction, sample.shape)
        truth = read_mask(sample.reference, store.classes, sample.shape).labels
        dice = 2 * ((labels == 1) & (truth == 1)).sum() / ((labels == 1).sum() + (truth == 1).sum())
        assert dice == pytest.approx(entry["dice"])
    for picture in report["pictures"]:
        assert np.asarray(Image.open(picture)).std() > 10
