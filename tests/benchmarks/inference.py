"""Prediction against the bare model, against MONAI, and on screen: ratios of one run.

    python tests/benchmarks/inference.py [--side 4096] [--rounds 3] [--device auto]
    python tests/benchmarks/inference.py --first-tile
    python tests/benchmarks/inference.py --memory [SIDE...]
    xvfb-run -a -s "-screen 0 1600x1000x24" python tests/benchmarks/inference.py --window

Without a flag: the shipped model over an RGB image in a Zarr array, in tiles of 256 pixels
that overlap by 64. *Bare* only runs the model, as the engine has it, on the same tiles,
already in memory; *SegDesk* reads, scales, computes, blends, measures uncertainty and
writes labels, uncertainty and probabilities to disk; *MONAI* (where it is installed) is its
``sliding_window_inference`` in Gaussian mode on the scaled image in memory, with the model
as it is loaded. All with the same threads and precision, in turn, each in a process of its
own; *bare* and *MONAI* as a script runs them, and once more with what the engine tells the
C library (:mod:`segdesk.jobs.heap`). ``times`` is how much longer the others took.

``--first-tile`` measures a warm engine's first tile and its cancel, against the forward
pass alone; ``--memory`` an engine that predicts RGB images from Zarr to Zarr.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import zarr
from torch import nn

from segdesk.config.inference import InferenceConfig
from segdesk.inference.predictor import Plane, Predictor
from segdesk.inference.results import Watch, predict_to_folder
from segdesk.inference.sampling import make_sampler
from segdesk.inference.tiling import mirrored
from segdesk.io.packages import bundled_packages
from segdesk.jobs.heap import give_back_freed_memory, keep_freed_memory
from segdesk.jobs.messages import Finished, PartsPredicted, PredictOrder, Ready, View
from segdesk.jobs.worker import WorkerProcess
from segdesk.nn.device import pick_device, place
from segdesk.nn.fuse import fuse_batch_norm
from segdesk.nn.weights import load_model

MODEL = "nuclei-unet"
OUR_MEMORY = ", our memory"
TILES = InferenceConfig(tile_size=256, overlap=64, precision="single", device="cpu")


def make_image(path: Path, side: int) -> Path:
    """Write an RGB image of bright discs, uint8, as a Zarr array of 512 pixel chunks."""
    random = np.random.default_rng(0)
    array = zarr.create_array(
        store=str(path), shape=(side, side, 3), chunks=(512, 512, 3), dtype="uint8"
    )
    rows, columns = np.mgrid[:512, :512]
    block = random.integers(0, 40, (512, 512, 3)).astype(np.uint8)
    for y, x in random.integers(20, 492, (30, 2)):
        block[(rows - y) ** 2 + (columns - x) ** 2 < 200] += 120
    for y in range(0, side, 512):
        strip = np.tile(block, (1, -(-side // 512), 1))[: side - y, :side]
        array[y : y + 512] = strip
    return path


def order_for(image: Path, out: Path, config: InferenceConfig, **more: Any) -> PredictOrder:
    """Return an order as the command line gives it."""
    return PredictOrder(
        job="job", sample="sample", image=str(image), image_sha256="", model=MODEL,
        model_folder=bundled_packages()[MODEL], classes=("background", "nucleus"), out=out,
        config=config, **more,
    )  # fmt: skip


class Peak:
    """The most memory this process had in a block of code above what it had before."""

    def __init__(self) -> None:
        self.megabytes = 0.0


@contextmanager
def peak_memory(pid: int | None = None) -> Iterator[Peak]:
    """Watch the resident memory of a process, 100 times a second."""
    process, peak, stop = psutil.Process(pid), Peak(), threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not stop.wait(0.01):
            peak.megabytes = max(peak.megabytes, (process.memory_info().rss - before) / 2**20)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield peak
    stop.set()
    thread.join()


# Throughput -------------------------------------------------------------------------


def prepared_tiles(predictor: Predictor, image: np.ndarray) -> list[torch.Tensor]:
    """Return every tile of the image as the network gets it."""
    plane = Plane.of(predictor.prepare(image))
    tiling = predictor.plan(plane.shape, TILES)
    found = []
    for tile in tiling.tiles:
        block = mirrored(plane.read, plane.shape, tiling.input_box(tile))
        batch = torch.from_numpy(np.ascontiguousarray(block.transpose(2, 0, 1)))[None]
        found.append(batch.to(predictor.device, memory_format=torch.channels_last))
    return found


def run_bare(network: nn.Module, tiles: list[torch.Tensor]) -> None:
    """Only run the network."""
    with torch.inference_mode():
        for batch in tiles:
            network(batch)
    if tiles[0].is_cuda:
        torch.cuda.synchronize()


def run_monai(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Run MONAI's sliding window."""
    from monai.inferers.utils import sliding_window_inference

    with torch.inference_mode():
        return sliding_window_inference(
            image, (256, 256), 1, network, overlap=64 / 256, mode="gaussian"
        )


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return seconds and the peak of extra memory in MiB."""
    gc.collect()
    give_back_freed_memory()  # so that nobody runs in what another left
    with peak_memory() as peak:
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
    return seconds, peak.megabytes


def contend(name: str, folder: Path, device: str) -> None:
    """Be one contender: run once for each line on stdin, and tell how it went on stdout."""
    if name == "SegDesk" or name.endswith(OUR_MEMORY):
        keep_freed_memory()
    choice = pick_device(device).device
    loaded = load_model(bundled_packages()[MODEL])
    plain = copy.deepcopy(loaded.network).to(choice).eval()
    fuse_batch_norm(loaded.network)
    predictor = Predictor(loaded, choice)
    source, small = folder / "image.zarr", folder / "small.zarr"
    image = np.asarray(zarr.open_array(str(source), mode="r")[:])
    # All of them warm: nothing is imported, tuned or started later.
    if name == "SegDesk":
        del image
        sampler = make_sampler(TILES.settled().uncertainty, [predictor.network])

        def run(image: Path = source) -> None:
            order = order_for(image, folder / "out", TILES)
            predict_to_folder(order, loaded, predictor, sampler, Watch())

        run(small)
        work: Callable[[], object] = run
    elif name.startswith("bare"):
        run_bare(predictor.network, prepared_tiles(predictor, image[:256, :256]))
        prepared = prepared_tiles(predictor, image)
        work = partial(run_bare, predictor.network, prepared)
    else:
        scaled = predictor.prepare(image).transpose(2, 0, 1).copy()
        del image
        whole = torch.from_numpy(scaled)[None].to(choice)
        run_monai(plain, whole[:, :, :512, :512])
        work = partial(run_monai, plain, whole)
    told = {"device": str(choice), "threads": torch.get_num_threads()}
    for message in itertools.chain([told], (timed(work) for _ in sys.stdin)):
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


def throughput(side: int, rounds: int, device: str) -> dict[str, Any]:
    """Compare them on one image, in turn, each in a process of its own."""
    others = ["bare", "MONAI"] if importlib.util.find_spec("monai") else ["bare"]
    names = ["SegDesk", *(name + more for name in others for more in ("", OUR_MEMORY))]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        folder = Path(work)
        make_image(folder / "image.zarr", side)
        make_image(folder / "small.zarr", 512)
        processes, told = {}, {}
        for name in names:
            command = [sys.executable, __file__, "--contender", name, "--folder", work]
            process = stack.enter_context(
                subprocess.Popen(
                    [*command, "--device", device],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
            processes[name] = process
            told = _answer(process)
        for _ in range(rounds):
            for name, process in processes.items():
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
                found[name].append(tuple(_answer(process)))
        for process in processes.values():
            assert process.stdin is not None
            process.stdin.close()

    def ratio(of: str) -> float:
        pairs = zip(found[of], found["SegDesk"], strict=True)
        return round(statistics.median(other[0] / own[0] for other, own in pairs), 3)

    def medians(column: int, digits: int | None) -> dict[str, float]:
        return {
            name: round(statistics.median(run[column] for run in runs), digits)
            for name, runs in found.items()
        }

    return {
        "side": side,
        **told,
        "seconds": medians(0, 2),
        "extra_mib": medians(1, None),
        "times": {name: ratio(name) for name in names[1:]},
    }


def _answer(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


# The engine --------------------------------------------------------------------------


class Line:
    """An engine process and what it says, with times."""

    def __init__(self, folder: Path) -> None:
        self._heard: list[tuple[float, Any]] = []
        self._news = threading.Condition()
        self.engine = WorkerProcess(
            ("-m", "segdesk.inference", str(folder / "log.txt")),
            name="prediction",
            on_event=self._hear,
        )
        self.wait(lambda event: isinstance(event, Ready))

    def _hear(self, event: Any) -> None:
        with self._news:
            self._heard.append((time.perf_counter(), event))
            self._news.notify_all()

    def wait(self, is_it: Callable[[Any], bool], seconds: float = 3000) -> tuple[float, Any]:
        """Return when the first such event came, and the event."""
        until = time.monotonic() + seconds
        with self._news:
            while True:
                for heard in self._heard:
                    if is_it(heard[1]):
                        return heard
                if not self._news.wait(until - time.monotonic()):
                    raise TimeoutError

    def forget(self) -> None:
        """Begin to listen anew."""
        with self._news:
            self._heard.clear()

    def predict(self, order: PredictOrder) -> tuple[float, Any]:
        """Give an order and wait for its end."""
        self.forget()
        self.engine.give(order.job, order)
        return self.wait(lambda event: isinstance(event, Finished))


def first_tile(side: int, rounds: int) -> dict[str, Any]:
    """Measure a warm engine's first tile and its cancel, against the forward pass alone."""
    loaded = load_model(bundled_packages()[MODEL])
    fuse_batch_norm(loaded.network)
    network = place(loaded.network, torch.device("cpu"))
    batch = torch.rand(1, 3, 256, 256).contiguous(memory_format=torch.channels_last)
    late, cancels, forwards = [], [], []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        image = make_image(folder / "image.zarr", side)
        small = make_image(folder / "small.zarr", 256)
        line = Line(folder)
        line.predict(order_for(small, folder / "warm", TILES))
        for number in range(rounds):
            times = []
            for _ in range(5):
                began = time.perf_counter()
                with torch.inference_mode():
                    network(batch)
                times.append(time.perf_counter() - began)
            forwards.append(statistics.median(times))
            view = View(top=side // 2, bottom=side // 2 + 400, left=100, right=500)
            order = order_for(image, folder / f"out{number}", TILES, view=view)
            line.forget()
            began = time.perf_counter()
            line.engine.give(order.job, order)
            shown, _ = line.wait(lambda event: isinstance(event, PartsPredicted))
            late.append(shown - began - forwards[-1])
            time.sleep(1)
            began = time.perf_counter()
            line.engine.cancel(order.job)
            ended, _ = line.wait(lambda event: isinstance(event, Finished))
            cancels.append(ended - began)
        line.engine.close()
    return {
        "forward_s": round(statistics.median(forwards), 3),
        "first_tile_after_forward_s": round(statistics.median(late), 3),
        "cancel_s": round(statistics.median(cancels), 3),
    }


def memory(sides: list[int]) -> dict[str, Any]:
    """Measure an engine's memory above idle while it predicts from Zarr to Zarr."""
    found = {}
    config = InferenceConfig(device="cpu", precision="single")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        line = Line(folder)
        line.predict(order_for(make_image(folder / "warm.zarr", 512), folder / "warm", config))
        for side in sides:
            image = make_image(folder / f"{side}.zarr", side)
            with peak_memory(line.engine.pid) as peak:
                began = time.perf_counter()
                order = order_for(image, folder / f"out{side}", config, as_tiff=False)
                _, end = line.predict(order)
            found[side] = {
                "state": str(end.state),
                "peak_mib_above_idle": round(peak.megabytes),
                "minutes": round((time.perf_counter() - began) / 60, 1),
            }
            sys.stderr.write(f"{side}: {found[side]}\n")
        line.engine.close()
    return {"memory": found}


# The window --------------------------------------------------------------------------


#: What runs beside the window and has nothing to do with it: code, and in how many processes.
BESIDE = {
    "counting beside": ("while True: pass", psutil.cpu_count() or 1),
    "a network beside": (
        "import torch\n"
        "block = torch.nn.Conv2d(32, 32, 3, padding=1).to(memory_format=torch.channels_last)\n"
        "x = torch.rand(1, 32, 256, 256).contiguous(memory_format=torch.channels_last)\n"
        "with torch.inference_mode():\n"
        "    while True: block(x)",
        1,
    ),
}


def window(side: int, rounds: int) -> dict[str, Any]:
    """Measure lateness and strokes in turn: nothing runs; the engine is busy; and, for what
    any work beside the window costs, processes that know nothing of it: as many as cores that
    only count, and one that runs a network on all of them."""
    from lateness import Lateness
    from qtpy.QtOpenGLWidgets import QOpenGLWidget

    from segdesk.app.window import DesktopWindow
    from segdesk.core.classes import ClassMap
    from segdesk.io.store import ProjectStore
    from segdesk.session import predicting
    from segdesk.session.projects import NewImage, add_images
    from segdesk.session.session import Session
    from segdesk.ui.label_window import COARSEST_PAINTED

    loop = Lateness()
    found: dict[str, dict[str, list[Any]]] = {
        state: {"late_ms": [], "stroke_ms": []} for state in ("idle", "busy", *BESIDE)
    }
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        store = ProjectStore.create(
            folder / "p.segdesk", ClassMap.from_names(["background", "nucleus"])
        )
        session = Session(store)
        add_images(session, [NewImage(make_image(folder / "image.zarr", side))])
        session.close()
        desktop = DesktopWindow()
        desktop.open_project(folder / "p.segdesk")
        opened = desktop.workbench.session
        assert opened is not None
        desktop.workbench.show_sample(opened.store.samples()[0].id)
        loop.settle(20)
        camera = desktop.viewer.scene.camera  # as far away as strokes are taken
        camera.zoom = max(camera.zoom, 1.2 / COARSEST_PAINTED)
        loop.settle(2)
        canvas = desktop.main.findChild(QOpenGLWidget)
        strokes = 0
        for turn, state in enumerate(list(found) * rounds):
            jobs: list[str] = []
            beside: list[subprocess.Popen[bytes]] = []
            if state == "busy":
                parts: list[object] = []
                opened.events.parts_predicted.connect(parts.append)
                seen = View(top=0, bottom=side, left=0, right=side)
                jobs = predicting.request(opened, opened.store.samples(), TILES, view=seen)
                while not parts:
                    loop.settle(0.05)
            elif state != "idle":
                code, count = BESIDE[state]
                command = [sys.executable, "-c", code]
                beside = [subprocess.Popen(command) for _ in range(count)]
                for process in beside:
                    psutil.Process(process.pid).nice(psutil.Process(opened_engine()).nice())
                loop.settle(8)  # until torch is there
            now = found[state]
            loop.begin()
            loop.run(8)
            now["late_ms"].append(loop.end())
            # Always another class than before, so that every stroke has something to change.
            spent = [paint(desktop, canvas, loop, at, turn % 2) for at in range(-4, 5)]
            now["stroke_ms"] += spent
            strokes += len(spent)
            for process in beside:
                process.kill()
            if jobs:
                assert opened.jobs, "the engine had ended before; take a larger --side"
                opened.backend.cancel(jobs[0])
                loop.settle(5)
        correction = desktop.workbench.current_correction
        assert correction is not None
        taken = sum(correction.undo() is not None for _ in range(strokes))
        assert taken == strokes, f"{taken} of {strokes} strokes were taken"
        desktop.main.close()
        loop.settle(1)
    return {
        state: {
            "late_ms": now["late_ms"],
            "stroke_ms": round(statistics.median(now["stroke_ms"]), 1),
        }
        for state, now in found.items()
    }


def opened_engine() -> int:
    """Return the process id of the engine behind the window."""
    children = psutil.Process().children(recursive=True)
    return next(c.pid for c in children if "segdesk.inference" in c.cmdline())


def paint(desktop: Any, canvas: Any, loop: Any, at: int, value: int) -> float:
    """Drag the brush over the image; return how many ms a move took, on average."""
    from qtpy.QtCore import QPoint, Qt
    from qtpy.QtTest import QTest

    labels = desktop.viewer.layers["Labels"]
    desktop.viewer.layers.selection.active = labels
    labels.selected_label, labels.brush_size, labels.mode = value, 9, "paint"
    middle = canvas.rect().center() + QPoint(0, 20 * at)
    button, none = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    QTest.mousePress(canvas, button, none, middle - QPoint(60, 0))
    spent = []
    for step in range(-60, 61, 12):
        loop.settle(0.02)  # napari takes moves that come faster for one
        began = time.perf_counter()
        QTest.mouseMove(canvas, middle + QPoint(step, 0))
        spent.append(time.perf_counter() - began)
    QTest.mouseRelease(canvas, button, none, middle + QPoint(60, 0))
    loop.settle(0.05)
    return 1000 * statistics.mean(spent)


def main() -> None:
    """Measure what was asked for and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", type=int, nargs="*", metavar="SIDE")
    parser.add_argument("--first-tile", action="store_true")
    parser.add_argument("--window", action="store_true")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        contend(arguments.contender, arguments.folder, arguments.device)
        return
    if arguments.window:
        found = window(arguments.side, arguments.rounds)
    elif arguments.memory is not None:
        found = memory(arguments.memory or [4096, 8192, 16384])
    elif arguments.first_tile:
        found = first_tile(arguments.side, arguments.rounds)
    else:
        found = throughput(arguments.side, arguments.rounds, arguments.device)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
