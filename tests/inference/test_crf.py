"""The CRF against brute force, and what a user sees of it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crf_examples import brute_force, example
from segdesk.config.refinement import CrfConfig
from segdesk.core.errors import CanceledError
from segdesk.inference import crf
from segdesk.inference.crf import Lattice, refine
from segdesk.jobs.cancel import CancelToken

Floats = npt.NDArray[np.float32]


@pytest.mark.parametrize(("dimensions", "error"), [(2, 0.013), (3, 0.015), (5, 0.028)])
def test_the_lattice_is_a_gaussian_filter(dimensions: int, error: float) -> None:
    random = np.random.default_rng(0)
    points = random.uniform(0, 4, (600, dimensions)).astype(np.float32)
    values = (random.random((600, 2)) + (points[:, :1] > 2)).astype(np.float32)
    kernel = np.exp(-((points[:, None] - points) ** 2).sum(-1) / 2)
    exact = kernel @ values / kernel.sum(0)[:, None]
    lattice = Lattice(points)
    ours = lattice.filter(values) / lattice.filter(np.ones((600, 1), np.float32))
    assert np.abs(ours - exact).mean() <= error


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("knobs", "share"),
    [
        ({}, 0.99),
        ({"appearance_grey": 13, "appearance_px": 20, "smoothness_px": 2}, 0.99),
        # As wide as the grey levels lie apart: ties, of which pydensecrf2 loses as many.
        ({"appearance_grey": 40, "appearance_weight": 2, "smoothness_px": 1.5}, 0.98),
    ],
)
def test_it_is_mean_field_by_brute_force(
    channels: int, knobs: dict[str, float], share: float
) -> None:
    """The lattice is an approximation: few labels and little probability may differ."""
    config = CrfConfig.from_user({"iterations": 5, **knobs})
    agree, differ, moved = [], [], []
    for seed in range(6):
        probabilities, grey = example(seed, channels=channels, sure=0.75)
        ours = refine(probabilities, grey, config)
        exact = brute_force(probabilities, grey, config)
        agree.append((ours.argmax(0) == exact.argmax(0)).mean())
        differ.append(np.abs(ours - exact).mean())
        moved.append((probabilities.argmax(0) != exact.argmax(0)).mean())
    assert np.mean(agree) >= share
    assert np.mean(differ) <= 0.01
    assert np.mean(moved) > 0.2, "there is work to do"


@pytest.mark.parametrize("left_out", ["appearance_weight", "smoothness_weight"])
def test_each_kernel_by_itself(left_out: str) -> None:
    config = CrfConfig(appearance_px=8, iterations=5).model_copy(update={left_out: 0.0})
    probabilities, grey = example(3)
    ours, exact = refine(probabilities, grey, config), brute_force(probabilities, grey, config)
    assert (ours.argmax(0) == exact.argmax(0)).mean() >= 0.99
    assert np.abs(ours - exact).mean() <= 0.01


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    classes=st.integers(2, 12),
    channels=st.integers(1, 7),
    grey=st.sampled_from([0.0, 255.0, None]),
    seed=st.integers(0, 9),
)
def test_any_plane_gives_probabilities(
    shape: tuple[int, int], classes: int, channels: int, grey: float | None, seed: int
) -> None:
    """One pixel, one grey value, certainty: nothing divides by zero."""
    random = np.random.default_rng(seed)
    maps = np.eye(classes, dtype=np.float32)[random.integers(0, classes, shape)].transpose(2, 0, 1)
    image = random.uniform(0, 255, (*shape, channels)) if grey is None else grey
    plane = np.broadcast_to(np.asarray(image, np.float32), (*shape, channels))
    refined = refine(maps, plane, CrfConfig(iterations=3))
    assert refined.shape == maps.shape
    assert refined.dtype == np.float32
    assert (refined >= 0).all()
    np.testing.assert_allclose(refined.sum(0), 1, atol=1e-5)


def two_classes(foreground: npt.NDArray[np.bool_], sure: float) -> Floats:
    share = np.where(foreground, sure, 1 - sure).astype(np.float32)
    return np.stack((1 - share, share))


def test_a_speck_goes_where_the_image_shows_nothing() -> None:
    mask = np.zeros((32, 32), bool)
    mask[10, 20] = True
    refined = refine(two_classes(mask, 0.7), np.full((32, 32, 1), 90, np.float32), CrfConfig())
    assert not refined.argmax(0).any()


def dice(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("channels", [1, 3])
def test_edges_snap_to_those_of_the_image(channels: int) -> None:
    """A mask that is shifted and full of noise comes closer to the disc in the image."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:80, :80]
    disc = (rows - 40) ** 2 + (columns - 36) ** 2 < 22**2
    rough = np.roll(disc, (3, -3), (0, 1)) ^ (random.random(disc.shape) < 0.1)
    grey = np.where(disc, 190, 60)[..., None] + random.normal(0, 8, (80, 80, channels))
    refined = refine(two_classes(rough, 0.75), grey.astype(np.float32), CrfConfig()).argmax(0) == 1
    assert dice(rough, disc) < 0.85
    assert dice(refined, disc) > 0.99


def test_blocks_of_a_large_plane_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, grey = example(0, height=70, width=95)
    config = CrfConfig(appearance_px=6, iterations=4)
    whole = refine(probabilities, grey, config)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(crf, "BLOCK", 64)
    blocks = refine(probabilities, grey, config, progress=lambda *at: seen.append(at))
    assert seen == [(i, 24) for i in range(25)]  # 2 x 3 blocks of 4 iterations
    assert (blocks.argmax(0) == whole.argmax(0)).mean() > 0.995
    assert np.abs(blocks - whole).mean() < 0.005


def test_blocks_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the image shows nothing, labels are decided together, over the seams."""
    probabilities, grey = example(0, height=70, width=95, sure=0.75)
    grey[:] = 90
    config = CrfConfig(appearance_px=6, smoothness_px=3, smoothness_weight=3, iterations=4)
    whole = refine(probabilities, grey, config)
    monkeypatch.setattr(crf, "BLOCK", 64)
    blocks = refine(probabilities, grey, config)
    assert (blocks.argmax(0) == whole.argmax(0)).mean() > 0.93
    assert np.abs(blocks - whole).mean() < 0.03


def test_it_can_be_called_off_between_iterations() -> None:
    probabilities, grey = example(0)
    token, seen = CancelToken(), []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 3:
            token.cancel()

    with pytest.raises(CanceledError):
        refine(probabilities, grey, CrfConfig(iterations=9), token, progress)
    assert seen == [(0, 9), (1, 9), (2, 9), (3, 9)]
