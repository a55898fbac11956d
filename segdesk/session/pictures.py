"""Pictures for people: image, mask, uncertainty and errors side by side."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from segdesk.core.address import Address
from segdesk.core.classes import ClassMap
from segdesk.io.images import read_image, thumbnail

Picture = npt.NDArray[np.uint8]

GAP = 6
CAPTION = 16
MISSED = (230, 159, 0)
FALSE = (204, 121, 167)


def overlay_picture(
    path: Address,
    labels: npt.NDArray[np.uint8],
    unsure: npt.NDArray[np.float32],
    truth: npt.NDArray[np.uint8] | None,
    classes: ClassMap,
    captions: tuple[str, ...] = ("image", "mask", "uncertainty", "error"),
) -> Picture:
    """Return image, mask, uncertainty and, with ``truth``, errors: uint8 (h, w, 3).

    Errors: orange where the mask misses something, pink where it has too much.
    A stack is shown by its middle plane.
    """
    data = read_image(path)
    base = thumbnail(data, size=max(data.spatial_shape[-2:])).astype(np.float32)
    if labels.ndim == 3:
        middle = len(labels) // 2
        labels, unsure = labels[middle], unsure[middle]
        truth = truth[middle] if truth is not None else None
    mask = base.copy()
    for entry in classes.classes[1:]:
        color = np.array([int(entry.color[i : i + 2], 16) for i in (1, 3, 5)], np.float32)
        mask[labels == entry.id] = 0.5 * mask[labels == entry.id] + 0.5 * color
    glow = unsure[..., None] * np.array((255, 176, 0), np.float32)
    panels = [base, mask, np.maximum(base * 0.35, glow)]
    if truth is not None:
        error = base * 0.35
        error[(truth > 0) & (labels != truth)] = MISSED
        error[(truth == 0) & (labels > 0)] = FALSE
        panels.append(error)
    return _side_by_side([np.clip(p, 0, 255).astype(np.uint8) for p in panels], captions)


def _side_by_side(panels: list[Picture], captions: tuple[str, ...]) -> Picture:
    height, width = panels[0].shape[:2]
    sheet = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height + CAPTION), "white")
    draw = ImageDraw.Draw(sheet)
    for i, panel in enumerate(panels):
        sheet.paste(Image.fromarray(panel), (i * (width + GAP), CAPTION))
        draw.text((i * (width + GAP) + 2, 2), captions[i], fill="black")
    return np.asarray(sheet)


def stack_pictures(pictures: list[Picture]) -> Picture:
    """Put pictures of any width under each other."""
    width = max(p.shape[1] for p in pictures)
    rows = [
        np.pad(p, ((0, GAP), (0, width - p.shape[1]), (0, 0)), constant_values=255)
        for p in pictures
    ]
    return np.concatenate(rows)
