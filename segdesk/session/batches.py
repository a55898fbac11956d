"""Predicting image files into a folder: which, what is done already, results in place."""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from segdesk.config.inference import InferenceConfig
from segdesk.core.address import Address, is_remote, name_of, stem_of
from segdesk.core.errors import InputError
from segdesk.io.atomic import explain_os_errors
from segdesk.io.packages import hash_weights
from segdesk.io.sources import hash_source, is_zarr
from segdesk.jobs.messages import PredictOrder
from segdesk.session.models import ModelEntry
from segdesk.session.predicting import find_companions, is_same
from segdesk.session.projects import find_images

#: In the folder of the results: what is not finished, to be gone on with.
UNFINISHED: Final = ".unfinished"
PARTS: Final = ("labels", "uncertainty", "probabilities")
SUFFIXES: Final = (".tif", ".zarr")
PROVENANCE: Final = "provenance.json"


def find_sources(names: Sequence[str]) -> list[Address]:
    """Return the images that are named, each once: addresses, files, folders and patterns.

    Patterns such as ``scans/*.tif`` are for shells that do not fill them in; ``**``
    stands for any folders.

    Raises
    ------
    InputError
        There is nothing of that name, a pattern fits nothing, or a folder holds no image.
    """
    found: list[Address] = []
    for name in names:
        if is_remote(name):
            found.append(name)
        elif glob.has_magic(name) and not Path(name).exists():
            matches = sorted(glob.glob(name, recursive=True))
            if not matches:
                raise InputError(f"No file fits the pattern {name}.")
            found += find_images(matches)
        else:
            found += find_images([name])
    return list(dict.fromkeys(found))


def require_distinct(images: Sequence[Address]) -> None:
    """Refuse images whose results would have the same names (InputError)."""
    stems: dict[str, Address] = {}
    for image in images:
        other = stems.setdefault(stem_of(image), image)
        if other != image:
            raise InputError(
                f"{other} and {image} would get the same result files; predict them into two "
                "folders."
            )


def order_for(
    image: Address, entry: ModelEntry, config: InferenceConfig, out: Path, level: int = 0
) -> PredictOrder:
    """Return the order for an image whose results go to the folder ``out``.

    Of a Zarr they are Zarr, else TIFF unless they are too large for one.

    Raises
    ------
    InputError
        The image is gone, or a companion of an ensemble cannot be had.
    """
    stem = stem_of(image)
    return PredictOrder(
        job=name_of(image),
        sample=stem,
        image=str(image if is_remote(image) else Path(image).absolute()),
        image_sha256=hash_source(image),
        model=entry.name,
        model_folder=entry.folder.absolute(),
        classes=entry.card.classes,
        out=out.absolute() / UNFINISHED / stem,
        config=config,
        companions=tuple(c.folder.absolute() for c in find_companions(config, entry).values()),
        level=level,
        as_tiff=False if is_zarr(image) else None,
    )


def find_done(order: PredictOrder, out: Path) -> dict[str, Any] | None:
    """Return results in ``out`` that the order would only make again, as :func:`put_in_place`.

    Raises
    ------
    InputError
        The model's weights are gone, or the disk is full.
    """
    companions = [hash_weights(folder) for folder in order.companions]
    deciding = order.deciding(hash_weights(order.model_folder), companions)
    if is_same(_read(order.out / PROVENANCE), deciding):
        return put_in_place(order, out)  # it was stopped before it came to that
    path = out / f"{order.sample}_{PROVENANCE}"
    made = _read(path)
    found = {part: _result(out, order.sample, part) for part in PARTS}
    if not is_same(made, deciding) or None in found.values():
        return None
    return {"unsure": made.get("unsure"), **_words(found), "provenance": str(path)}


def put_in_place(order: PredictOrder, out: Path) -> dict[str, Any]:
    """Move finished results into ``out``; those of an earlier prediction give way.

    Returns
    -------
    dict
        The share of unsure pixels, 0 to 1, and the path of each result.

    Raises
    ------
    InputError
        The folder cannot be written to.
    """
    stem, path = order.sample, out / f"{order.sample}_{PROVENANCE}"
    made = _read(order.out / PROVENANCE)
    with explain_os_errors(out):
        path.unlink(missing_ok=True)  # it comes last: with it, all are there
        for part in PARTS:
            new = next((f for s in SUFFIXES if (f := order.out / f"{part}{s}").exists()), None)
            if new is None:  # it was moved before an earlier try was stopped
                continue
            while (old := _result(out, stem, part)) is not None:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
            os.replace(new, out / f"{stem}_{new.name}")
        os.replace(order.out / PROVENANCE, path)
        shutil.rmtree(order.out)  # what is left is of use to projects only
    found = {part: _result(out, stem, part) for part in PARTS}
    return {"unsure": made.get("unsure"), **_words(found), "provenance": str(path)}


def tidy(out: Path) -> None:
    """Remove the folder of unfinished results if there are none."""
    with suppress(OSError):
        (out / UNFINISHED).rmdir()


def _result(out: Path, stem: str, part: str) -> Path | None:
    paths = (out / f"{stem}_{part}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.exists()), None)


def _words(found: dict[str, Path | None]) -> dict[str, str]:
    return {part: str(path) for part, path in found.items() if path is not None}


def _read(path: Path) -> dict[str, Any]:
    try:
        made = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return made if isinstance(made, dict) else {}
