"""What the rounds so far say about more images, and when they say nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from past_rounds import put_round, saturating
from segdesk.core.annotation import Edit
from segdesk.io.store import ProjectStore
from segdesk.session.annotating import correcting_seconds, learning_curve
from segdesk.session.projects import NewImage, add_images
from segdesk.session.session import Session


@pytest.fixture
def add_round(session: Session) -> Callable[..., None]:
    """Put a completed run with its round into the project."""
    return partial(put_round, session.store)


def test_three_rounds_tell_what_ten_more_images_bring(
    session: Session, add_round: Callable[..., None]
) -> None:
    for images in (4, 8):
        add_round(images, saturating(images))
        assert learning_curve(session.store) is None
    add_round(16, saturating(16))
    curve = learning_curve(session.store)
    assert curve is not None
    true = saturating(26) - saturating(16)
    assert curve.gain_interval[0] <= true <= curve.gain_interval[1]
    assert curve.gain == pytest.approx(true, abs=0.01)
    assert [(p.images, round(p.dice, 3)) for p in curve.points] == [
        (n, round(saturating(n), 3)) for n in (4, 8, 16)
    ]
    assert curve.images[-1] == 26
    assert all(a <= b <= c for a, b, c in zip(curve.low, curve.middle, curve.high, strict=True))
    assert curve.minutes_per_image is None
    assert "10 more labelled images would change Dice by +0.01" in curve.text


def test_the_same_number_of_images_again_is_no_curve(
    session: Session, add_round: Callable[..., None]
) -> None:
    for _ in range(4):
        add_round(8, 0.8)
    add_round(9, 0.81)
    assert learning_curve(session.store) is None


def test_rounds_judged_on_other_labels_do_not_count(
    session: Session, add_round: Callable[..., None]
) -> None:
    for images in (4, 8, 16):
        add_round(images, saturating(images))
    add_round(20, 0.5, held_labels="corrected")
    assert learning_curve(session.store) is None


def test_where_rounds_scatter_it_stays_silent(
    session: Session, add_round: Callable[..., None]
) -> None:
    for images, dice in ((4, 0.5), (5, 0.8), (6, 0.4)):
        add_round(images, dice)
    assert learning_curve(session.store) is None


def test_the_users_own_time_is_measured_from_the_strokes(
    session: Session, add_round: Callable[..., None], discs: Callable[..., Any], tmp_path: Path
) -> None:
    from PIL import Image

    assert correcting_seconds([0, 10, 25, 200, 230]) == 10 + 15 + 30
    assert correcting_seconds([5]) == 0
    paths = []
    for seed in range(4):
        paths.append(tmp_path / f"c{seed}.png")
        Image.fromarray(discs(seed)[0]).save(paths[-1])
    add_images(session, [NewImage(path) for path in paths])
    store: ProjectStore = session.store
    blank = np.zeros((64, 64), np.uint8)
    stroke = np.ones((2, 4, 4), np.uint8)
    for sample in store.samples()[:3]:
        store.write_revision(sample.id, blank, blank, origin="test")
        for second in (0.0, 40.0, 90.0, 1000.0):
            edit = Edit((0, 0), (4, 4), stroke * 0, stroke, "paint", 1e9 + second)
            store.append_edit(sample.id, edit)
    for images in (4, 8, 16):
        add_round(images, saturating(images))
    curve = learning_curve(store)
    assert curve is not None
    assert curve.minutes_per_image == pytest.approx(1.5)  # 40 s and 50 s; then there was a pause
    assert curve.gain_per_minute == pytest.approx(curve.gain / 15)
    assert "for about 15 min of your time" in curve.text


def test_status_tells_it(
    session: Session, add_round: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    from segdesk.cli import run

    folder = str(session.store.folder)
    assert run(["status", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["learning_curve"] is None
    for images in (4, 8, 16):
        add_round(images, saturating(images))
    assert run(["status", folder]) == 0
    assert "10 more labelled images would change Dice by +0.0" in capsys.readouterr().out
    assert run(["status", folder, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["learning_curve"]
    assert [p["images"] for p in told["points"]] == [4, 8, 16]
