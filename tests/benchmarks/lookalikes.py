"""Copies of images across the split: how many are found, and what is found wrongly.

    python tests/benchmarks/lookalikes.py --data DIR [--copies 40] nuclei kvasir224 ...

Each name is a folder of ``DIR`` with ``train`` and ``val``, or with one ``volume.tif`` whose
slices are compared with one another. Every image held back is compared with all that are learnt
from, as the look before fine-tuning does; pairs that come out are named, for eyes to judge. Then
of evenly chosen images copies are made in several ways, and each is looked for.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segdesk.io.images import read_image
from segdesk.session.lookalikes import LookAlikes, shrink

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Change = Callable[[Pixels, np.random.Generator], Pixels]


def cut(image: Pixels, rng: np.random.Generator, share: float) -> Pixels:
    """Cut off a share of height and width, split between opposite edges by chance."""
    for axis in (0, 1):
        length = image.shape[axis]
        gone = round(share * length)
        first = int(rng.integers(gone + 1))
        image = image.take(range(first, length - gone + first), axis)
    return image


def cut_all_edges(image: Pixels, rng: np.random.Generator) -> Pixels:
    height, width = (round(0.05 * n) for n in image.shape[:2])
    return image[height:-height, width:-width]


def as_jpeg(image: Pixels, quality: int) -> Pixels:
    stream = io.BytesIO()
    Image.fromarray(image.squeeze()).save(stream, "JPEG", quality=quality)
    found = np.asarray(Image.open(stream))
    return found if found.ndim == 3 else found[..., None]


def with_gamma(image: Pixels, gamma: float) -> Pixels:
    return (255 * (image / 255) ** gamma).astype(np.uint8)


def turned(image: Pixels, rng: np.random.Generator) -> Pixels:
    lying = np.rot90(image, int(rng.integers(4)))
    return lying[:, ::-1] if rng.random() < 0.5 else lying


def noisy(image: Pixels, rng: np.random.Generator) -> Pixels:
    return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)


def all_at_once(image: Pixels, rng: np.random.Generator) -> Pixels:
    return as_jpeg(with_gamma(np.ascontiguousarray(turned(cut(image, rng, 0.05), rng)), 0.8), 70)


CHANGES: dict[str, Change] = {
    "JPEG, quality 40": lambda image, rng: as_jpeg(image, 40),
    "gamma 0.6": lambda image, rng: with_gamma(image, 0.6),
    "gamma 1.6": lambda image, rng: with_gamma(image, 1.6),
    "noise of 8 grey values": noisy,
    "turned or mirrored": turned,
    "2 % cut off": lambda image, rng: cut(image, rng, 0.02),
    "3 % cut off": lambda image, rng: cut(image, rng, 0.03),
    "5 % cut off": lambda image, rng: cut(image, rng, 0.05),
    "5 % cut off at each edge": cut_all_edges,
    "5 % cut off, turned, gamma 0.8, JPEG 70": all_at_once,
}


def shifted(image: Pixels) -> tuple[Pixels, Pixels]:
    """Return two views of one thing, 5 percent apart along both sides."""
    height, width = (round(0.05 * n) for n in image.shape[:2])
    return image[height:, width:], image[:-height, :-width]


def read(path: Path) -> Pixels:
    data = read_image(path).data
    return np.asarray(data[..., :3], np.uint8)


def read_case(folder: Path) -> tuple[list[str], list[Pixels], list[str], list[Pixels]]:
    """Return names and images that are learnt from, and those held back."""
    if (folder / "volume.tif").is_file():
        slices = list(read(folder / "volume.tif"))
        names = [f"slice {number}" for number in range(len(slices))]
        return names, slices, names, slices
    found: list[Any] = []
    for split in ("train", "val"):
        paths = sorted((folder / split / "images").iterdir())
        found += [[path.name for path in paths], [read(path) for path in paths]]
    return found[0], found[1], found[2], found[3]


def measure(folder: Path, copies: int) -> None:
    names, images, held_names, held = read_case(folder)
    small = [shrink(image) for image in images]
    held_small = [shrink(image) for image in held]
    began = time.perf_counter()
    index = LookAlikes(small)
    pairs = []
    for name, one in zip(held_names, held_small, strict=True):
        alike = [(like, names[n]) for n, like in index.of(one).items() if names[n] != name]
        pairs += [(round(like, 3), name, other) for like, other in alike]
    seconds = time.perf_counter() - began
    show(case=folder.name, images=len(images), held_back=len(held), seconds=round(seconds, 1),
         alike=sorted(pairs, reverse=True))  # fmt: skip
    rng = np.random.default_rng(0)
    chosen = np.unique(np.linspace(0, len(images) - 1, min(copies, len(images))).astype(int))
    for what, change in CHANGES.items():
        found = sum(int(n) in index.of(shrink(change(images[n], rng))) for n in chosen)
        show(case=folder.name, copy=what, found=f"{found} of {len(chosen)}")
    views = [shifted(images[n]) for n in chosen]
    shifts = LookAlikes([shrink(one) for one, _ in views])
    found = sum(n in shifts.of(shrink(other)) for n, (_, other) in enumerate(views))
    show(case=folder.name, copy="view shifted by 5 %", found=f"{found} of {len(chosen)}")


def show(**report: Any) -> None:
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--copies", type=int, default=40)
    arguments = parser.parse_args()
    for name in arguments.names:
        measure(arguments.data / name, arguments.copies)


if __name__ == "__main__":
    main()
