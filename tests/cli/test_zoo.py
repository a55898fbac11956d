"""Every architecture goes the whole way: learn, save, load, judge, predict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from segdesk.nn.registry import architectures
from segdesk.session.sample_project import sample_folder

STEPS = 20
#: Of the images, in pixels: cut from the sample's, as networks take long over whole ones.
SIDE = 160


@pytest.fixture
def nuclei(tmp_path: Path, segdesk: Callable[..., Any]) -> Path:
    """Make a project of five labelled fluorescence images of the sample, by command."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        for file in sorted((sample_folder() / part).glob("fluorescence*.png"))[:5]:
            Image.open(file).crop((0, 0, SIDE, SIDE)).save(tmp_path / part / file.name)
    folder = tmp_path / "p.segdesk"
    assert segdesk("new", folder, "--classes", "background,nucleus").code == 0
    added = segdesk("add", folder, tmp_path / "images", "--masks", tmp_path / "masks")
    assert added.code == 0, added.err
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", list(architectures()))
def test_it_learns_saves_loads_and_predicts_the_same(
    nuclei: Path, segdesk: Callable[..., Any], name: str
) -> None:
    spec = architectures()[name]
    side = -(-max(64, spec.min_size) // spec.stride) * spec.stride
    knobs = {"steps": STEPS, "crop_size": side, "batch_size": 2, "augment": "none"}
    settings = [part for k, v in knobs.items() for part in ("--set", f"{k}={v}")]
    trained = segdesk("train", nuclei, "--new", name, "--option", "head=C", *settings, "--json")
    assert trained.code == 0, trained.err
    events, end = trained.lines[:-1], trained.lines[-1]
    losses = [e["loss"] for e in events if e.get("event") == "step"]
    assert len(losses) == STEPS
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    model = end["model"]
    # The weights as saved and loaded again score as the network did when it was trained.
    judged = segdesk("evaluate", nuclei, "--model", model, "--json").json
    assert judged["dice"] == pytest.approx(end["after"]["dice"], abs=1e-6)
    image = next((nuclei.parent / "images").iterdir())
    answers = []
    for out in ("first", "second"):
        done = segdesk("predict", image, "--model", nuclei / "models" / model,
                       "--out", nuclei.parent / out)  # fmt: skip
        assert done.code == 0, done.err
        answers.append(tifffile.imread(nuclei.parent / out / f"{image.stem}_uncertainty.tif"))
    assert np.array_equal(*answers)
    assert answers[0].std() > 0
