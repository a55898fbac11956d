"""Fine-tuning against plain torch, and from a click to a changed overlay: ratios of one run.

    python tests/benchmarks/training.py --loop [--steps 30] [--rounds 3]
    python tests/benchmarks/training.py --quick
    xvfb-run -a -s "-screen 0 1600x1000x24" python tests/benchmarks/training.py --window
    python tests/benchmarks/training.py --plain nuclei|kvasir|camvid --data DIR [--steps 200]
        [--model FOLDER] [--first 8] [--seed 0] [--recipes plain full ...] [--set KEY=VALUE ...]

``--loop``: steps per second of a whole run (crops, augmentation, averaging, events, journal)
against a bare torch loop with the same model, batch and loss on data already in memory, in
turn. ``--quick``: a project with eight corrected stained images of 224 pixels and the
shipped model; from the order to the changed labels on disk, in worker processes as the
window has them; to the first step of the recipe full, and from its stop to the end of the
process. ``--window``: how late the window's event loop is while the Train panel shows a run,
against how late it is when nothing runs. ``--plain``: SegDesk's defaults
and a plain fine-tune (all weights, no replay, no schedule, no averaging), same base model,
same number of steps; Dice on images neither has seen, and on the kind known before.
``DIR`` holds ``train`` and ``val`` with ``images`` and ``masks``. ``--first 8`` leaves the
first eight stained nuclei to be judged and learns from the next eight; ``--set`` gives SegDesk's
runs other settings than the defaults; ``--model`` is a model of nuclei other than the shipped.
"""

from __future__ import annotations

import argparse
import json
import queue
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from segdesk.config.inference import InferenceConfig
from segdesk.config.training import Recipe, TrainingConfig
from segdesk.core.annotation import Supervision
from segdesk.core.classes import UNLABELLED, ClassMap
from segdesk.core.manifest import ManifestSample, RunManifest
from segdesk.core.run import RunState
from segdesk.core.sample import Split
from segdesk.inference.normalize import fit_channels, scale
from segdesk.inference.predictor import Predictor
from segdesk.io.images import hash_file, read_image
from segdesk.io.labels import write_labels
from segdesk.io.packages import bundled_packages
from segdesk.io.store import ProjectStore
from segdesk.jobs.control import RunControl
from segdesk.jobs.following import process_of
from segdesk.jobs.heap import keep_freed_memory
from segdesk.jobs.messages import AnyEvent, Finished, PredictionReady, Ready, Stepped
from segdesk.nn.losses import make_loss
from segdesk.nn.weights import LoadedModel, adapt_outputs, load_model
from segdesk.session import predicting, training
from segdesk.session.correcting import Correction
from segdesk.session.models import use_model
from segdesk.session.projects import NewImage, add_images
from segdesk.session.sample_project import sample_folder, sample_images
from segdesk.session.session import Session, engine_log
from segdesk.session.workers import WorkerBackend
from segdesk.training.dataset import Item
from segdesk.training.evaluate import Judge
from segdesk.training.run import run_folder

MODEL = "nuclei-unet"
NUCLEI = ("background", "nucleus")
SIDE = 224
PLAIN = "plain"


@dataclass(frozen=True)
class Labelled:
    """An image with its true labels, uint8 (Y, X)."""

    image: Path
    labels: np.ndarray[Any, np.dtype[np.uint8]]


def show(**report: Any) -> None:
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()


# Runs of ours, in this process ---------------------------------------------------


def do_run(
    folder: Path, images: Sequence[Labelled], classes: Sequence[str], config: TrainingConfig,
    hear: Callable[[AnyEvent], None] = lambda event: None, base: Path | None = None,
) -> Path:  # fmt: skip
    """Fine-tune a model, the shipped one by default, as a run of a project would."""
    folder.mkdir(parents=True)
    samples = []
    for number, one in enumerate(images):
        path = folder / f"{number}.tif"
        known = np.where(one.labels == UNLABELLED, Supervision.UNSEEN, Supervision.ACCEPTED)
        write_labels(path, one.labels, known.astype(np.uint8))
        samples.append(
            ManifestSample(id=f"s{number}", image=one.image, sha256=hash_file(one.image),
                           labels=path, revision=1, split=Split.TRAIN)
        )  # fmt: skip
    manifest = RunManifest(
        run="run", new_model="new", base_model=MODEL, base_folder=base or bundled_packages()[MODEL],
        channels=3, classes=tuple(classes), colors=("#000000",) * len(classes),
        samples=tuple(samples), features=folder.parent / "features",
    )  # fmt: skip
    (folder / "manifest.json").write_text(manifest.model_dump_json(), "utf-8")
    (folder / "config.json").write_text(config.model_dump_json(), "utf-8")
    end = run_folder(folder, hear, RunControl())
    if end.state is not RunState.COMPLETED:
        sys.exit(end.reason)
    return folder / "model"


# Plain torch ---------------------------------------------------------------------


def plain_start(classes: Sequence[str], folder: Path | None = None) -> LoadedModel:
    base = load_model(folder or bundled_packages()[MODEL])
    card = base.card.model_copy(
        update={"classes": tuple(classes), "colors": ("#000000",) * len(classes)}
    )
    return LoadedModel(adapt_outputs(base, card), card, "")


def in_memory(images: Sequence[Labelled], model: LoadedModel) -> list[tuple[Tensor, Tensor]]:
    """Return standardised images (C, H, W) and labels (H, W)."""
    how, found = model.card.normalization, []
    for one in images:
        data = scale(fit_channels(read_image(one.image).data, 3, MODEL), how)
        pixels = torch.from_numpy((data.transpose(2, 0, 1) - how.mean) / how.std).float()
        found.append((pixels, torch.from_numpy(one.labels)))
    return found


def plain_batch(
    pairs: Sequence[tuple[Tensor, Tensor]], rng: np.random.Generator, count: int, side: int
) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    for index in rng.integers(len(pairs), size=count):
        image, mask = pairs[index]
        height, width = mask.shape
        y, x = (int(rng.integers(max(1, n - side + 1))) for n in (height, width))
        crop, part = image[:, y : y + side, x : x + side], mask[y : y + side, x : x + side]
        if rng.random() < 0.5:
            crop, part = crop.flip(2), part.flip(1)
        images.append(crop)
        labels.append(part)
    return torch.stack(images), torch.stack(labels)


def plain_fine_tune(
    model: LoadedModel, images: Sequence[Labelled], steps: int, side: int
) -> tuple[nn.Module, float]:
    """All weights, no replay, no schedule: what most scripts do; returns the seconds too."""
    rng = np.random.default_rng(0)
    pairs = in_memory(images, model)
    network = model.network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    network.requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4)
    loss_of = make_loss(TrainingConfig())
    began = time.perf_counter()
    for _ in range(steps):
        batch, labels = plain_batch(pairs, rng, 4, side)
        weights = (labels != UNLABELLED).float()
        loss = loss_of(
            network(batch.contiguous(memory_format=torch.channels_last)), labels, weights
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return network, time.perf_counter() - began


def judge(model: LoadedModel, images: Sequence[Labelled]) -> float:
    """Return the mean Dice over images."""
    items = []
    for number, one in enumerate(images):
        unit = scale(fit_channels(read_image(one.image).data, 3, MODEL), model.card.normalization)
        weights = (one.labels != UNLABELLED).astype(np.float32)
        items.append(Item(str(number), unit, one.labels, weights))
    model.network.eval()
    scores = Judge(tuple(items), model.card.classes, model.card.normalization).score(
        Predictor(model, torch.device("cpu")), InferenceConfig(precision="single")
    )
    return float(scores["dice"])


# The data ------------------------------------------------------------------------


def read_pairs(folder: Path, to_labels: Callable[[Path], Any], limit: int | None) -> list[Labelled]:
    paths = sorted((folder / "images").iterdir())
    if limit is not None:
        paths = [paths[int(i * len(paths) / limit)] for i in range(min(limit, len(paths)))]
    return [Labelled(p, to_labels(next((folder / "masks").glob(f"{p.stem}.*")))) for p in paths]


def as_binary(path: Path) -> Any:
    return (np.asarray(Image.open(path).convert("L")) > 0).astype(np.uint8)


def as_camvid(path: Path) -> Any:
    labels = np.asarray(Image.open(path)).astype(np.uint8)
    return np.where(labels >= 11, UNLABELLED, labels).astype(np.uint8)


def is_stained(one: Labelled) -> bool:
    data = read_image(one.image).data[..., :3].astype(int)
    return bool(np.abs(data[..., 0] - data[..., 1]).max() >= 10 and data.mean() > 120)


def is_fluorescence(one: Labelled) -> bool:
    data = read_image(one.image).data[..., :3].astype(int)
    return bool(np.abs(data[..., 0] - data[..., 1]).max() < 10 and data.mean() < 120)


def load_case(
    name: str, data: Path, first: int = 0
) -> tuple[tuple[str, ...], list[Labelled], list[Labelled], list[Labelled]]:
    """Return classes, images to learn from, unseen ones, and some of the kind known before."""
    if name == "nuclei":
        train, val = (read_pairs(data / s, as_binary, None) for s in ("train", "val"))
        stained = [one for one in train if is_stained(one)]
        learn = stained[first : first + 8]
        rest = stained[:first] + stained[first + 8 :]
        unseen = rest + [one for one in val if is_stained(one)]
        return NUCLEI, learn, unseen, [one for one in val if is_fluorescence(one)]
    if name == "kvasir":
        train = read_pairs(data / "train", as_binary, 20)
        return ("background", "polyp"), train, read_pairs(data / "val", as_binary, 100), []
    names = (
        "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car",
        "pedestrian", "bicyclist",
    )  # fmt: skip
    train = read_pairs(data / "train", as_camvid, 40)
    return names, train, read_pairs(data / "val", as_camvid, None), []


# What is measured ------------------------------------------------------------------


def compare_with_plain(arguments: argparse.Namespace) -> None:
    name, steps, folder = arguments.plain, arguments.steps, arguments.model
    classes, learn, unseen, known = load_case(name, arguments.data, arguments.first)
    base = plain_start(classes, folder)
    before = {"unseen": judge(base, unseen)} | ({"known": judge(base, known)} if known else {})
    show(case=name, images=len(learn), unseen=len(unseen), steps=steps, before=before)
    settings = dict(setting.split("=", 1) for setting in arguments.set)
    for recipe in arguments.recipes:
        if recipe == PLAIN:
            torch.manual_seed(arguments.seed)  # outputs of new classes begin at random
            model = plain_start(classes, folder)
            _, seconds = plain_fine_tune(model, learn, steps, SIDE)
            report(name, PLAIN, seconds, model, unseen, known)
            continue
        chosen = {"recipe": recipe, "steps": steps, "device": "cpu", "seed": arguments.seed}
        chosen |= settings
        config = TrainingConfig.from_user(chosen)
        with tempfile.TemporaryDirectory() as work:
            began = time.perf_counter()
            run = do_run(Path(work) / "run", learn, classes, config, base=folder)
            made, seconds = load_model(run), time.perf_counter() - began
        report(name, recipe, seconds, made, unseen, known)


def report(
    case: str, how: str, seconds: float, model: LoadedModel, unseen: Sequence[Labelled],
    known: Sequence[Labelled],
) -> None:  # fmt: skip
    scores = {"unseen": round(judge(model, unseen), 4)}
    if known:
        scores["known"] = round(judge(model, known), 4)
    show(case=case, how=how, seconds=round(seconds, 1), dice=scores)


def stained_sample() -> list[Labelled]:
    """Return the stained images of the sample project, cut to 224 pixels."""
    folder, found = sample_folder(), []
    for image in sample_images():
        if image.kind == "stained":
            path = folder / "images" / f"{image.name}.png"
            found.append(Labelled(path, as_binary(folder / "masks" / f"{image.name}.png")))
    return found


def cut_to(folder: Path, images: Sequence[Labelled], side: int) -> list[Labelled]:
    folder.mkdir(parents=True)
    made = []
    for number, one in enumerate(images):
        path = folder / f"stained{number}.png"
        Image.fromarray(np.asarray(Image.open(one.image))[:side, :side]).save(path)
        made.append(Labelled(path, one.labels[:side, :side].copy()))
    return made


def compare_loops(steps: int, rounds: int) -> None:
    """Steps per second of a run and of a bare loop, in turn."""
    images = stained_sample()[:8]
    ratios = []
    for number in range(rounds):
        model = plain_start(NUCLEI)
        _, seconds = plain_fine_tune(model, images, steps, SIDE)
        ours = seconds_a_step(images, steps)
        ratios.append(seconds / steps / ours)
        show(round=number, plain_step=round(seconds / steps, 3), segdesk_step=round(ours, 3),
             ratio=round(ratios[-1], 3))  # fmt: skip
    show(steps_per_second_against_a_bare_loop=round(statistics.median(ratios), 3))


def seconds_a_step(images: Sequence[Labelled], steps: int) -> float:
    times: list[float] = []

    def hear(event: AnyEvent) -> None:
        if isinstance(event, Stepped):
            times.append(time.perf_counter())

    config = TrainingConfig(steps=steps, evaluate_every=100_000, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        do_run(Path(folder) / "run", images, NUCLEI, config, hear)
    return (times[-1] - times[0]) / (steps - 1)


class Window:
    """What the window has behind it: a session, worker processes, and their events."""

    def __init__(self, folder: Path, images: Sequence[Labelled]) -> None:
        store = ProjectStore.create(folder, ClassMap.from_names(list(NUCLEI)))
        self.session = Session(store)
        self._events: queue.Queue[AnyEvent] = queue.Queue()
        self.backend = WorkerBackend(self._events.put, engine_log(folder))
        self.session.attach(self.backend)
        self.backend.warm()
        added = [NewImage(one.image, split=Split.TRAIN) for one in images]
        add_images(self.session, added, copy=True)
        for sample, one in zip(self.session.store.samples(), images, strict=True):
            correction = Correction(self.session, sample)
            correction.replace(one.labels, "reference")
            correction.accept()

    def wait(self, wanted: Callable[[AnyEvent], bool]) -> AnyEvent:
        while True:
            event = self._events.get(timeout=600)
            self.session.handle(event)
            if isinstance(event, Finished) and event.state is not RunState.COMPLETED:
                sys.exit(f"{event.state}: {event.reason}")
            if wanted(event):
                return event


def measure_quick() -> None:
    """From the order of a quick run to the changed labels of the image on screen."""
    with tempfile.TemporaryDirectory() as folder:
        images = cut_to(Path(folder) / "images", stained_sample()[:8], SIDE)
        window = Window(Path(folder) / "p.segdesk", images)
        session = window.session
        window.wait(lambda e: isinstance(e, Ready))
        shown = session.store.samples()[0]
        config = InferenceConfig(device="cpu")
        predicting.request(session, [shown], config)
        window.wait(lambda e: isinstance(e, PredictionReady))
        for recipe in (Recipe.QUICK, Recipe.QUICK, Recipe.FULL):
            asked = TrainingConfig(recipe=recipe, device="cpu")
            job = training.estimate(session, asked)  # the Train panel asks: a process waits
            window.wait(lambda e, job=job: isinstance(e, Finished) and e.job == job)
            began = time.perf_counter()
            run = training.start(session, asked)
            window.wait(lambda e: isinstance(e, Stepped))
            to_step = time.perf_counter() - began
            if recipe is Recipe.FULL:
                process = process_of(run.folder)
                stopped = time.perf_counter()
                training.stop(session, run.id)
                if process is not None:
                    process.wait(60)
                show(recipe=str(recipe), seconds_to_first_step=round(to_step, 2),
                     seconds_from_stop_to_end=round(time.perf_counter() - stopped, 2))  # fmt: skip
                break
            window.wait(lambda e, run=run: isinstance(e, Finished) and e.job == run.id)
            to_model = time.perf_counter() - began
            use_model(session, run.new_model)
            predicting.request(session, [shown], config)
            window.wait(lambda e: isinstance(e, PredictionReady))
            show(recipe=str(recipe), seconds_to_first_step=round(to_step, 2),
                 seconds_to_model=round(to_model, 2),
                 seconds_to_overlay=round(time.perf_counter() - began, 2))  # fmt: skip
        session.close()


def measure_window(seconds: float) -> None:
    """How late the event loop is: a timer of 10 ms, idle and while a run is shown."""
    from lateness import Lateness

    from segdesk.app.window import DesktopWindow
    from segdesk.session.sample_project import make_sample_project

    loop = Lateness()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "p.segdesk"
        session = make_sample_project(folder)
        for sample in session.store.samples():
            if sample.reference is not None and sample.name.startswith("stained"):
                truth = as_binary(sample.reference)
                correction = Correction(session, sample)
                correction.replace(truth, "reference")
                correction.accept()
        session.close()
        window = DesktopWindow()
        window.open_project(folder)
        window.workbench.raise_panel("Train")

        def spend(what: str) -> None:
            loop.begin()
            loop.run(seconds)
            show(window=what, late_ms=loop.end())

        loop.settle(20)
        spend("nothing runs")
        opened = window.workbench.session
        assert opened is not None
        config = TrainingConfig(steps=2000, evaluate_every=10, device="cpu")
        run = training.start(opened, config)
        stepped: list[object] = []
        opened.events.run_stepped.connect(stepped.append)
        while len(stepped) < 2:
            loop.settle(0.1)
        spend("a run is shown")
        training.stop_now(opened, run.id)
        while training.is_under_way(opened):  # else closing asks what shall become of it
            loop.settle(0.1)
        window.main.close()
        loop.settle(1)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loop", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--window", action="store_true")
    parser.add_argument("--plain", choices=("nuclei", "kvasir", "camvid"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recipes", nargs="+", default=[PLAIN, "quick", "standard", "full"])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the process of a run does; plain torch is given the same here
    if arguments.loop:
        compare_loops(min(arguments.steps, 30), arguments.rounds)
    if arguments.quick:
        measure_quick()
    if arguments.window:
        measure_window(30.0)
    if arguments.plain:
        if arguments.data is None:
            parser.error("--plain needs --data")
        compare_with_plain(arguments)


if __name__ == "__main__":
    main()
