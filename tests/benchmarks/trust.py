"""Whether uncertainty finds errors, per kind, on a model trained here by command.

    python tests/benchmarks/trust.py kvasir224|em_membrane|nuclei --data FOLDER --work FOLDER
        [--architecture NAME] [--set KEY=VALUE ...]
    python tests/benchmarks/trust.py fluorescence|stained --data FOLDER --work FOLDER
        [--ensemble MODEL]

Makes a project of the training images, trains a small model on it with ``segdesk train``,
and judges it with ``segdesk trust`` and ``segdesk predict`` on images that it has never
seen: ``val`` of the same data, or the last five slices of ``em_membrane``. A folder in which a
model was trained already is judged again only. The architecture must have an option
``dropout``, for one of the kinds. With ``fluorescence`` or ``stained`` the shipped model is
judged, on those images of ``nuclei/val``; ``--ensemble`` names another to ask as well.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from training import as_binary, is_fluorescence, is_stained, read_pairs

KINDS = ("margin", "entropy", "dropout", "augmentation")
CLASSES = {"kvasir224": "polyp", "em_membrane": "interior", "nuclei": "nucleus"}
#: Kinds of nuclei, and how they are told apart.
NUCLEI = {"fluorescence": is_fluorescence, "stained": is_stained}
SHIPPED = "nuclei-unet"
UNSEEN_SLICES = 5


def segdesk(*arguments: object) -> str:
    """Run a command and return what it printed."""
    command = [sys.executable, "-m", "segdesk", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def split(name: str, data: Path, work: Path) -> tuple[Path, Path]:
    """Return the folders of training and unseen images, each with ``images`` and ``masks``."""
    if name in NUCLEI:
        val = data / "nuclei" / "val"
        for one in filter(NUCLEI[name], read_pairs(val, as_binary, None)):
            (mask,) = (val / "masks").glob(f"{one.image.stem}.*")
            for part, file in (("images", one.image), ("masks", mask)):
                (work / "val" / part).mkdir(parents=True, exist_ok=True)
                shutil.copy(file, work / "val" / part)
        return data / "nuclei" / "train", work / "val"
    if name != "em_membrane":
        return data / name / "train", data / name / "val"
    folders = work / "train", work / "val"
    stacks = {
        part: tifffile.imread(data / name / file)
        for part, file in (("images", "volume.tif"), ("masks", "labels.tif"))
    }
    for part, stack in stacks.items():
        for number, plane in enumerate(stack):
            folder = folders[number >= len(stack) - UNSEEN_SLICES] / part
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(plane).save(folder / f"{number:02}.png")
    return folders


def train(name: str, folder: Path, work: Path, how: Sequence[str]) -> str:
    """Train a model and return the name of its package."""
    project = work / f"{name}.segdesk"
    if not project.exists():
        segdesk("new", project, "--classes", f"background,{CLASSES[name]}")
        segdesk("add", project, folder / "images", "--masks", folder / "masks")
        events = segdesk("train", project, "--option", "dropout=0.2", *how, "--json")
        (work / "outcome.json").write_text(events.splitlines()[-1], "utf-8")
    outcome = json.loads((work / "outcome.json").read_text("utf-8"))
    return str(project / "models" / outcome["model"])


def findings(unsure: np.ndarray[Any, Any], wrong: np.ndarray[Any, Any]) -> dict[str, float]:
    """Return AUROC, the share of errors in the most uncertain tenth, and the area under the
    risk-coverage curve (Geifman and El-Yaniv, 2017)."""
    order = np.argsort(unsure, kind="stable")
    errors = wrong[order].astype(np.float64)
    ranks = np.empty(len(unsure))
    _, first, count = np.unique(unsure[order], return_index=True, return_counts=True)
    ranks = np.repeat(first + (count + 1) / 2, count)  # ties share their mean rank
    positive, negative = errors.sum(), (1 - errors).sum()
    area = (ranks[errors == 1].sum() - positive * (positive + 1) / 2) / (positive * negative)
    covered = np.arange(1, len(errors) + 1)
    tenth = len(errors) // 10
    return {
        "auroc": round(float(area), 3),
        "top_tenth": round(float(errors[-tenth:].sum() / positive), 3),
        "aurc": round(float((errors.cumsum() / covered).mean()), 4),
    }


def judge(kind: str, model: str, unseen: Path, work: Path, *more: str) -> dict[str, float]:
    """Predict all unseen images with a kind of uncertainty, and compare with their masks."""
    out = work / kind
    settings = (f"uncertainty={kind}", *more)
    segdesk(
        "predict", unseen / "images", "--model", model, "--out", out,
        *(part for setting in settings for part in ("--set", setting)),
    )  # fmt: skip
    unsure, wrong = [], []
    for image in sorted((unseen / "images").iterdir()):
        mask = next((unseen / "masks").glob(f"{image.stem}.*"))
        true = np.asarray(Image.open(mask).convert("L")) > 127
        labels = tifffile.imread(out / f"{image.stem}_labels.tif")
        wrong.append(((labels > 0) != true).ravel())
        unsure.append(tifffile.imread(out / f"{image.stem}_uncertainty.tif").ravel())
    return findings(np.concatenate(unsure), np.concatenate(wrong))


def main() -> None:
    """Train, judge, and print all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=(*CLASSES, *NUCLEI))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--architecture", default="unet")
    parser.add_argument("--ensemble", metavar="MODEL")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    name, work = arguments.name, arguments.work
    work.mkdir(parents=True, exist_ok=True)
    folder, unseen = split(name, arguments.data, work)
    settings = [f"steps={arguments.steps}", *arguments.set]
    how = ["--new", arguments.architecture, *(p for s in settings for p in ("--set", s))]
    model = SHIPPED if name in NUCLEI else train(name, folder, work, how)
    places = ("--images", unseen / "images", "--masks", unseen / "masks")
    trust = json.loads(segdesk("trust", "--model", model, *places, "--json"))
    score = json.loads(segdesk("evaluate", "--model", model, *places, "--json"))
    calibration = trust["calibration"]
    found = {
        "dice": round(score["dice"], 3),
        "accuracy": round(trust["accuracy"], 3),
        "temperature": round(calibration["temperature"], 2),
        "ece": [round(calibration[key], 4) for key in ("ece_before", "ece_after")],
        "ece_of_halves": [
            [round(half[key], 4) for key in ("ece_before", "ece_after")]
            for half in calibration["halves"]
        ],
        "wrong_near_half": round(trust["band"]["wrong"], 3),
        "right_near_half": round(trust["band"]["right"], 3),
        "kinds": {kind: judge(kind, model, unseen, work) for kind in KINDS},
    }
    if arguments.ensemble:
        others = f"companions={arguments.ensemble}"
        found["kinds"]["ensemble"] = judge("ensemble", model, unseen, work, others)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
