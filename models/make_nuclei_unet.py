"""Train ``nuclei-unet``, the model that SegDesk ships, from CC0 images only.

    python models/make_nuclei_unet.py --data DIR [--out DIR] [--steps N]

``DIR`` holds ``train`` and ``val``, each with ``images`` and ``masks``, of the
2018 Data Science Bowl nuclei (BBBC038, CC0). All fluorescence images of ``train``
are learnt from, and no others; the weights are those of the end, averaged. ``val``
gives the score in the card.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from segdesk import __version__
from segdesk.config.inference import InferenceConfig
from segdesk.config.training import TrainingConfig
from segdesk.core.annotation import Supervision
from segdesk.core.card import TrainingData
from segdesk.core.classes import ClassMap
from segdesk.core.manifest import ManifestSample, RunManifest
from segdesk.core.run import RunState
from segdesk.core.sample import Split
from segdesk.io.images import hash_file, read_image
from segdesk.io.labels import write_labels
from segdesk.io.masks import read_mask
from segdesk.io.packages import REHEARSAL
from segdesk.jobs.control import RunControl
from segdesk.jobs.messages import AnyEvent, Evaluated, Finished, Stepped
from segdesk.nn.weights import load_model, save_model
from segdesk.training.inline import evaluate_model
from segdesk.training.run import run_folder

CLASSES = ClassMap.from_names(["background", "nucleus"])
NAME = "nuclei-unet"
OPTIONS = {"width": 16, "dropout": 0.1, "head": "C", "activation": "none"}
REHEARSAL_IMAGES = 16
REHEARSAL_SIDE = 256


def is_fluorescence(path: Path) -> bool:
    """Tell the grey, dark images from stained and bright-field ones."""
    data = read_image(path).data[..., :3].astype(int)
    is_coloured = np.abs(data[..., 0] - data[..., 1]).max() >= 10
    return not is_coloured and data.mean() < 120


def collect(data: Path, split: str, work: Path) -> list[ManifestSample]:
    """Write label files for the fluorescence images of a split."""
    samples = []
    paths = [p for p in sorted((data / split / "images").iterdir()) if is_fluorescence(p)]
    for path in paths:
        shape = read_image(path).data.shape[:2]
        mask = data / split / "masks" / f"{path.stem}.png"
        labels = read_mask(mask, CLASSES, shape).labels
        file = work / f"{split}-{path.stem}.tif"
        write_labels(file, labels, np.full(shape, Supervision.ACCEPTED, np.uint8))
        samples.append(
            ManifestSample(
                id=path.stem,
                image=path,
                sha256=hash_file(path),
                labels=file,
                revision=1,
                split=Split.VALIDATION if split == "val" else Split.TRAIN,
            )
        )
    return samples


def write_rehearsal(samples: list[ManifestSample], data: Path, target: Path) -> None:
    """Keep crops of some training images, of every size there is, beside the weights."""
    step = len(samples) / REHEARSAL_IMAGES
    for folder in ("images", "labels"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    for sample in (samples[int(i * step)] for i in range(REHEARSAL_IMAGES)):
        image = read_image(sample.image).data[..., 0]
        mask = data / "train" / "masks" / f"{sample.id}.png"
        labels = read_mask(mask, CLASSES, image.shape).labels
        y, x = ((length - REHEARSAL_SIDE) // 2 for length in image.shape)
        box = (slice(y, y + REHEARSAL_SIDE), slice(x, x + REHEARSAL_SIDE))
        name = f"{sample.id}.png"
        Image.fromarray(image[box]).save(target / "images" / name, optimize=True)
        Image.fromarray(labels[box]).save(target / "labels" / name, optimize=True)


def train(folder: Path, manifest: RunManifest, steps: int) -> Path:
    """Do the run and return the folder of the model it made."""
    config = TrainingConfig(
        steps=steps, batch_size=8, learning_rate=3e-3, averaging=0.995, weight_decay=0.01, clip=1.0
    )
    folder.mkdir()
    (folder / "manifest.json").write_text(manifest.model_dump_json(), "utf-8")
    (folder / "config.json").write_text(config.model_dump_json(), "utf-8")
    end = run_folder(folder, tell, RunControl())
    if end.state is not RunState.COMPLETED:
        sys.exit(f"{end.state}: {end.reason}")
    return folder / "model"


def halve(network: nn.Module) -> None:
    """Keep what is large in half precision: as good (Dice differs by 0.0001), half the file."""
    for weights in network.parameters():
        if weights.ndim > 1:
            weights.data = weights.data.half()


def tell(event: AnyEvent) -> None:
    """Print what happens."""
    if isinstance(event, Stepped) and event.step % 20 == 0:
        left = event.seconds_left / 60
        sys.stdout.write(f"step {event.step}: loss {event.loss:.4f}, {left:.1f} min left\n")
    elif isinstance(event, Evaluated):
        sys.stdout.write(f"after {event.step} steps\n")
    elif isinstance(event, Finished):
        sys.stdout.write(f"{event.state} {event.reason}\n")
    sys.stdout.flush()


def main() -> None:
    """Train, judge once on ``val``, and write the package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    default = Path(__file__).parent / "segdesk_models" / "pretrained" / NAME
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--head", default=OPTIONS["head"])
    parser.add_argument("--activation", default=OPTIONS["activation"])
    arguments = parser.parse_args()
    options = {**OPTIONS, "head": arguments.head, "activation": arguments.activation}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        samples = collect(arguments.data, "train", work)
        manifest = RunManifest(
            run=NAME, new_model=NAME, architecture="unet", options=options, channels=3,
            classes=CLASSES.names, colors=tuple(c.color for c in CLASSES.classes),
            samples=tuple(samples), segdesk_version=__version__,
        )  # fmt: skip
        model = train(work / "run", manifest, arguments.steps)
        loaded = load_model(model)
        halve(loaded.network)
        save_model(model, loaded.network, loaded.card)
        held_out = collect(arguments.data, "val", work)
        scores = evaluate_model(model, held_out, InferenceConfig())
        card = loaded.card.model_copy(
            update={
                "training_data": (
                    TrainingData(
                        name="2018 Data Science Bowl nuclei (BBBC038), fluorescence images",
                        license="CC0-1.0",
                        images=len(samples),
                    ),
                ),
                "score": {"dice": round(scores["dice"], 4), "images": scores["n"]},
                "trained_ids": tuple(s.sha256 for s in samples),
                "base_model": "",
                "run": "",
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "description": "Nuclei in fluorescence microscopy; grey or RGB images.",
            }
        )
        shutil.rmtree(arguments.out, ignore_errors=True)
        save_model(arguments.out, loaded.network, card)
        write_rehearsal(samples, arguments.data, arguments.out / REHEARSAL)
    sys.stdout.write(f"Dice on {scores['n']} held-out images: {scores['dice']:.4f}\n")
    digest = hashlib.sha256((arguments.out / "weights.safetensors").read_bytes()).hexdigest()
    sys.stdout.write(f"{arguments.out}: {digest[:16]}\n")


if __name__ == "__main__":
    main()
