"""Copies of real images are found however they were changed, and nothing else is."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segdesk.io.images import read_image
from segdesk.session.lookalikes import LookAlikes, shrink
from segdesk.session.sample_project import sample_folder, sample_images


@pytest.fixture(scope="module")
def photographs() -> list[Any]:
    folder = sample_folder() / "images"
    return [read_image(folder / f"{i.name}.png").data[..., :3] for i in sample_images()]


@pytest.fixture(scope="module")
def index(photographs: list[Any]) -> LookAlikes:
    return LookAlikes([shrink(image) for image in photographs])


def cut(image: Any, *, top: float = 0, bottom: float = 0, left: float = 0, right: float = 0) -> Any:
    height, width = image.shape[:2]
    rows = slice(round(top * height), height - round(bottom * height))
    return image[rows, round(left * width) : width - round(right * width)]


def saved_anew(image: Any) -> Any:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(stream, "JPEG", quality=70)
    return np.asarray(Image.open(stream))


def darker(image: Any) -> Any:
    return (255 * (image / 255) ** 1.5).astype(np.uint8)


COPIES = {
    "two percent cut off": lambda i: cut(i, top=0.02, left=0.02),
    "three percent cut off": lambda i: cut(i, bottom=0.03, left=0.01, right=0.02),
    "five percent cut off": lambda i: cut(i, top=0.02, bottom=0.03, right=0.05),
    "a strip cut off": lambda i: cut(i, bottom=0.05),
    "cut, turned, darker, saved as JPEG": lambda i: saved_anew(
        darker(np.rot90(cut(i, top=0.05, left=0.04))[:, ::-1])
    ),
    "turned": lambda i: np.rot90(i, 3),
}


@pytest.mark.parametrize("kind", COPIES)
def test_every_copy_is_found_and_only_the_image_it_is_of(
    kind: str, photographs: list[Any], index: LookAlikes
) -> None:
    found = [set(index.of(shrink(COPIES[kind](image)))) for image in photographs]
    assert found == [{number} for number in range(len(photographs))]


def test_a_copy_is_found_in_a_view_that_lies_beside_it(photographs: list[Any]) -> None:
    """Two views of one slide, five percent of their side apart."""
    here = [cut(image, top=0.05, left=0.05) for image in photographs]
    there = [cut(image, bottom=0.05, right=0.05) for image in photographs]
    index = LookAlikes([shrink(image) for image in here])
    found = [set(index.of(shrink(image))) for image in there]
    assert found == [{number} for number in range(len(photographs))]


def test_one_dark_spot_does_not_make_two_images_the_same() -> None:
    """What outweighs all else, as a mole on skin does, is in one place in both."""
    rows, columns = np.mgrid[:200, :200]
    spot = 150 * np.exp(-((rows - 100) ** 2 + (columns - 100) ** 2) / 600)
    skin = np.random.default_rng(0).normal(200, 4, (2, 25, 25))
    fine = [np.kron(one, np.ones((8, 8))) for one in skin]
    one, other = ((texture - spot).clip(0, 255).astype(np.uint8)[..., None] for texture in fine)
    index = LookAlikes([shrink(one)])
    assert index.of(shrink(other)) == {}
    assert set(index.of(shrink(cut(one, top=0.03, left=0.03)))) == {0}


def test_a_search_can_be_called_off_between_planes(photographs: list[Any]) -> None:
    stack = np.stack([photographs[0]] * 5)
    seen: list[int] = []

    def check() -> None:
        seen.append(1)
        if len(seen) == 3:
            raise InterruptedError

    index = LookAlikes([shrink(stack)])
    with pytest.raises(InterruptedError):
        index.of(shrink(stack), check)
    assert len(seen) == 3
