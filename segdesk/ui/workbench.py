"""Everything a face needs around one viewer: an open project and its panels."""

from __future__ import annotations

import math
import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from psygnal import Signal
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QDockWidget, QMainWindow, QWidget

from segdesk.config.app import OnClose, RunHabits
from segdesk.config.inference import InferenceConfig
from segdesk.core.address import is_remote
from segdesk.core.annotation import BAND_PIXELS
from segdesk.core.classes import ClassMap
from segdesk.core.errors import InputError
from segdesk.core.prediction import Prediction
from segdesk.core.sample import Sample, Status
from segdesk.inference.regions import Region
from segdesk.inference.uncertainty import shown_as_guessing
from segdesk.io.images import ImageData, read_image
from segdesk.io.maps import PredictedMap
from segdesk.io.masks import read_mask
from segdesk.io.pyramids import Pyramid
from segdesk.io.store import ProjectStore
from segdesk.jobs.cancel import CancelToken
from segdesk.session import models, predicting, training
from segdesk.session.correcting import Correction
from segdesk.session.levels import levels_of, shape_at
from segdesk.session.predicting import Start
from segdesk.session.sample_project import make_sample_project
from segdesk.session.session import Session, engine_log
from segdesk.session.workers import WorkerBackend
from segdesk.ui.background import LoneThread, PatientPool, SlowThread, wait_painting
from segdesk.ui.bridge import Bridge, notify, reporting
from segdesk.ui.large import LargeImage, is_large, open_large
from segdesk.ui.layers import SampleLayers
from segdesk.ui.live import LivePrediction
from segdesk.ui.panels import make_panels
from segdesk.ui.strokes import StrokeKeeper

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari import Viewer

Result = TypeVar("Result")

#: An uncertain place is shown with so many times its width in view.
SURROUNDINGS = 2.0

#: Side of what is brought into view around a pixel, in pixels.
NEIGHBOURHOOD = 48

#: So long at most closing waits for the last reads of images from slow stores, in seconds.
LEAVE_SECONDS: Final = 10.0
#: So many servers that do not answer leave those that do free.
FAR_THREADS: Final = 4

#: So long after the last move of a stroke, in seconds, the engine waits for the next.
GIVE_WAY: Final = 0.4

CLOSING: Final = "Closing the project…"
STOPPING: Final = "Closing the project. The run under way writes its checkpoint and ends…"

#: Of large uncertainties every so many-th row and column tells which is shown as *guessing*.
THINNED = 8

#: Uncertainty, float32 0 to 1 or uint8 0 to 255, and which is shown as *guessing*.
Unsure = tuple[npt.NDArray[Any], float]
#: Labels, read later where the image is large, and uncertainty.
Maps = tuple[npt.NDArray[np.uint8] | PredictedMap, Unsure]


class Workbench:
    """One open project in one viewer.

    Knows nothing of the window around the viewer. The panels are made once and
    are usable without a project: they say what to do first.

    Attributes
    ----------
    viewer
        Where samples are shown.
    panels
        *Project*, *Predict*, *Correct*, *Train*, *Compare* and *Trust*.
    layers
        The layers of the sample on screen; None without a project.
    strokes
        Undo and redo; None before the first sample is on screen.
    """

    session_opened = Signal(object)  # Session
    session_closed = Signal()
    closing = Signal(str)  # what is waited for after that; empty once it is over
    sample_opening = Signal(str)  # id; its image is being read
    sample_shown = Signal(str)  # id; its layers are there
    jobs_ordered = Signal(list)  # ids of prediction jobs
    strokes_changed = Signal()  # a stroke was made, refused, undone or redone
    levels_progressed = Signal(str)  # how far the levels of a large image are; empty: done
    habits_changed = Signal(object)  # RunHabits; whoever keeps settings keeps them

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer
        self.layers: SampleLayers | None = None
        self.strokes: StrokeKeeper | None = None
        self._session: Session | None = None
        self._bridge: Bridge | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._far: PatientPool | None = None
        self._slow: SlowThread | None = None
        self._prompt: SlowThread | None = None
        self._sample_id: str | None = None
        self._correction: Correction | None = None
        self._large: LargeImage | None = None
        #: Samples that were left, and whose last reads have not ended yet.
        self._leaving: list[tuple[str, LoneThread]] = []
        self._accepting: Future[Callable[[], bool]] | None = None
        self._accepting_id = ""
        self._opening = 0
        self._is_read_stale = False
        self._is_arranged = False
        #: A pixel to bring into view once the sample is on screen.
        self._wanted: tuple[int, ...] | None = None
        self._docks: dict[str, QDockWidget] = {}
        #: Where the last file dialog was.
        self.last_folder = Path.home()
        #: How predictions are asked for; the Predict panel's form sets it.
        self.inference = InferenceConfig()
        #: At which resolution level; likewise.
        self.level = 0
        self._levels: tuple[tuple[int, ...], ...] = ()
        self._habits = RunHabits()
        self._live = LivePrediction(self)
        self.panels: dict[str, QWidget] = make_panels(self)

    # The project ---------------------------------------------------------------

    @property
    def session(self) -> Session | None:
        """The open session."""
        return self._session

    @property
    def slow(self) -> SlowThread | None:
        """Where pixels are counted; None without a project."""
        return self._slow

    @property
    def prompt(self) -> SlowThread | None:
        """For what the user waits for, behind nothing else; None without a project."""
        return self._prompt

    @property
    def bridge(self) -> Bridge | None:
        """Where events come in; None without a project."""
        return self._bridge

    @property
    def habits(self) -> RunHabits:
        """What is done by itself around fine-tuning runs."""
        return self._habits

    def set_habits(self, habits: RunHabits) -> None:
        """Choose what is done by itself around fine-tuning runs, from now on."""
        if self._session is not None:
            self._session.promotes_better = habits.use_better
        if habits != self._habits:
            self._habits = habits
            self.habits_changed.emit(habits)

    def open_project(self, path: Path) -> Session:
        """Open a project folder.

        Raises
        ------
        InputError
            Not a project, or it is open in another window.
        """
        return self.open(Session(ProjectStore.open(path)))

    def new_project(self, path: Path, classes: ClassMap) -> Session:
        """Make a project and open it.

        Raises
        ------
        InputError
            The folder holds something already, or cannot be written.
        """
        return self.open(Session(ProjectStore.create(path, classes)))

    def open_sample_project(self, folder: Path) -> Session:
        """Open the sample project in ``folder``, made there if it is missing."""
        with suppress(InputError):
            return self.open_project(folder)
        return self.open(make_sample_project(folder))

    def open(self, session: Session) -> Session:
        """Show a session that has no backend yet; the one before is closed.

        The engine process is started at once, so that the first prediction need
        not wait for it.
        """
        self.close()
        self._session = session
        session.promotes_better = self._habits.use_better
        self._bridge = Bridge(session.handle, is_painting=lambda: self.is_painting)
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="segdesk-io")
        self._far = PatientPool(FAR_THREADS, "segdesk-far")
        self._slow = SlowThread(self._bridge)
        self._prompt = SlowThread(self._bridge, "segdesk-prompt")
        backend = WorkerBackend(
            on_event=self._bridge.put, engine_log=engine_log(session.store.folder)
        )
        session.attach(backend)
        backend.warm()
        self.layers = SampleLayers(self.viewer, session.store.classes)
        self._live.listen(session)
        session.events.prediction_ready.connect(self._on_prediction)
        session.events.model_changed.connect(self._on_model_changed)
        self.session_opened.emit(session)
        for run in training.find_runs(session):
            notify(f"Fine-tuning run {run.id}: {run.reason}", "warning")
        return session

    def close(self, *, is_window_gone: bool = False) -> None:
        """Close the project: ends workers, timers and threads; may be called again.

        A run under way is stopped, unless the user wants runs to go on without the window.

        Parameters
        ----------
        is_window_gone
            The viewer's window is destroyed already: touch no widget and no layer.
        """
        session, self._session = self._session, None
        if session is None:
            return
        if self._habits.on_close is OnClose.GO_ON:
            training.leave_running(session)
        self._opening += 1
        self._live.close()
        self._finish_accepting()
        self._leave_sample()
        bridge, self._bridge = self._bridge, None
        if bridge is not None:
            bridge.close()
        slow, prompt, self._slow, self._prompt = self._slow, self._prompt, None, None
        (pool, self._pool), (far, self._far) = (self._pool, None), (self._far, None)
        layers, self.layers = self.layers, None
        leaving, self._leaving = self._leaving, []

        def end() -> None:
            """Wait for threads and processes, which may have a checkpoint to write."""
            until = time.monotonic() + LEAVE_SECONDS
            for thread in (slow, prompt, far):
                if thread is not None:
                    thread.close(max(0.0, until - time.monotonic()))
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)
            session.end_work()
            for _, left in leaving:
                left.join(max(0.0, until - time.monotonic()))

        if is_window_gone:
            end()
        else:
            is_stopping = training.is_under_way(session)
            if layers is not None:
                layers.remove()
            self.session_closed.emit()
            self.closing.emit(STOPPING if is_stopping else CLOSING)
            wait_painting(end)
            self.closing.emit("")
        session.close()

    # The sample on screen ------------------------------------------------------

    @property
    def current_sample_id(self) -> str | None:
        """Id of the sample on screen, or of the one being opened."""
        return self._sample_id

    @property
    def current_correction(self) -> Correction | None:
        """The correction of the sample on screen; None while it is opening."""
        return self._correction

    @property
    def is_painting(self) -> bool:
        """Whether a stroke is being drawn on the sample on screen."""
        return self.strokes is not None and self.strokes.is_under_way

    @property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the levels of the sample on screen, finest first; none while it opens."""
        return self._levels if self._correction is not None else ()

    def show_sample(self, sample_id: str) -> None:
        """Bring a sample on screen; its files are read in the background.

        Raises
        ------
        InputError
            The project has no such sample.
        """
        session = self._require_session()
        sample = session.store.sample(sample_id)
        if sample.id == self._accepting_id:
            self._finish_accepting()  # what is read now must be what is written then
        self._leave_sample()
        self._sample_id = sample.id
        self._wanted = None
        self._opening += 1
        self._is_read_stale = False
        prediction = predicting.current_prediction(session, sample.id)
        start = predicting.find_start(session, sample)
        self.sample_opening.emit(sample.id)
        read = partial(_read_sample, sample, prediction, session.store, start)
        self.in_background(read, partial(self._show, self._opening), is_far=is_remote(sample.path))

    def go_to(self, sample_id: str, place: tuple[int, ...] | None = None) -> None:
        """Bring a sample on screen, and then a pixel of it, (Y, X) or (Z, Y, X), into view.

        Raises
        ------
        InputError
            The project has no such sample.
        """
        is_there = sample_id == self._sample_id and self._correction is not None
        if not is_there:
            self.show_sample(sample_id)
        self._wanted = place
        if is_there:
            self._look_at_wanted()

    def _look_at_wanted(self) -> None:
        place, self._wanted = self._wanted, None
        if place is not None:
            *plane, row, column = place
            half = NEIGHBOURHOOD // 2
            self.look_at(
                Region(sum(plane), row - half, column - half, NEIGHBOURHOOD, NEIGHBOURHOOD, 0.0)
            )

    def look_at(self, region: Region) -> None:
        """Move the camera to a place of the sample on screen, with some surroundings."""
        if self.layers is None or self.layers.labels is None:
            return
        *before, rows, columns = self.layers.shape
        if before:
            self.viewer.dims.set_current_step(0, region.z)
        self.viewer.reset_view()  # the whole image: its zoom tells how large the canvas is
        across = max(region.height / rows, region.width / columns) * SURROUNDINGS
        camera = self.viewer.scene.camera
        camera.center = (region.y + region.height / 2, region.x + region.width / 2)
        camera.zoom *= max(1.0, 1.0 / across)

    def predict(self, sample_ids: list[str], model: str | None = None, level: int = 0) -> list[str]:
        """Order predictions, by default with the model in use; returns the job ids.

        Parameters
        ----------
        level
            Resolution level of multiscale images, 0 for the finest.

        Raises
        ------
        InputError
            No model fits, or an image is gone.
        """
        session = self._require_session()
        samples = [session.store.sample(sample_id) for sample_id in sample_ids]
        is_shown = sample_ids == [self._sample_id] and self._correction is not None
        view = None
        if is_shown and model is None:
            view = self._live.look(shape_at(samples[0], level), samples[0].shape)
        jobs = predicting.request(session, samples, self.inference, model, view, level)
        if view is not None:
            self._live.follow(jobs[0], view)
        self.jobs_ordered.emit(jobs)
        return jobs

    def in_background(
        self, work: Callable[[], Result], then: Callable[[Result], None], *, is_far: bool = False
    ) -> Future[Result]:
        """Do ``work`` on a reading thread and ``then`` on the main one.

        What ``work`` raises is shown to the user. With ``is_far`` it asks a server, which may
        never answer: nothing of this computer, nor closing the project, waits for that.
        """
        pool = self._far if is_far else self._pool
        if pool is None or self._bridge is None:
            raise InputError("Open a project first.")
        bridge = self._bridge
        future = pool.submit(work)

        def hand_over(done: Future[Result]) -> None:
            if not done.cancelled():
                bridge.call(lambda: then(done.result()))

        future.add_done_callback(hand_over)
        return future

    def ask(
        self, work: Callable[[CancelToken], Result], then: Callable[[Future[Result]], None]
    ) -> CancelToken:
        """Do ``work`` that may never end, as asking a server may, and ``then`` on the main thread.

        ``work`` is given what calls it off, which is also returned. Called off, or once the
        project is closed, ``then`` is not called; nobody waits for such work.
        """
        bridge, found = self._require_bridge(), Future[Result]()

        def hand_over(done: Future[None]) -> None:
            if (error := done.exception()) is not None:
                found.set_exception(error)
            bridge.call(lambda: None if asking.token.is_canceled else then(found))

        asking = LoneThread(
            lambda token: found.set_result(work(token)), hand_over, "segdesk-asking"
        )
        return asking.token

    # The window ------------------------------------------------------------------

    def dock(self, viewer: Viewer | None = None) -> None:
        """Dock the panels that are not docked yet: Project left, the others right."""
        window = (viewer or self.viewer).window
        for name, panel in self.panels.items():
            if panel.parent() is None:
                self._docks[name] = window.add_dock_widget(
                    panel,
                    name=name,
                    area="left" if name == "Project" else "right",
                    tabify=name not in ("Project", "Predict"),
                    add_vertical_stretch=False,
                )
        self.raise_panel("Predict")
        _share_left_side(self.panels["Project"])

    def raise_panel(self, name: str) -> None:
        """Bring a docked panel to the front."""
        dock = self.panels[name].parent()
        if isinstance(dock, QDockWidget):
            dock.show()
            dock.raise_()

    # How ---------------------------------------------------------------------------

    def _require_session(self) -> Session:
        if self._session is None:
            raise InputError("Open a project first.")
        return self._session

    def _is_in_use(self, model: str) -> bool:
        entry = models.current_model(self._require_session().store)
        return entry is not None and entry.name == model

    def _leave_sample(self) -> None:
        self._live.leave()
        if self.strokes is not None:
            self.strokes.close()
            self.strokes = None
        self._correction = None
        sample_id, self._sample_id = str(self._sample_id), None
        large, self._large = self._large, None
        if large is not None:
            self._leaving = [(of, left) for of, left in self._leaving if left.is_alive]
            self._leaving.append((sample_id, large.close()))
            self.levels_progressed.emit("")

    def _show(self, number: int, read: _Read) -> None:
        if number != self._opening or self._session is None or self.layers is None:
            if isinstance(read.image, tuple):
                read.image[0].close()
            return
        sample = self._session.store.sample(str(self._sample_id))
        correction = Correction(self._session, sample, read.start)
        if isinstance(read.image, tuple):
            self._show_large(sample, correction, *read.image)
        else:
            self.layers.show(read.image.data, correction.annotation.labels)
        self._show_unsure(read.unsure)
        if read.reference is not None:
            self.layers.set_reference(read.reference)
        if not self._is_arranged:  # napari's controls for labels take more room than none
            self._is_arranged = True
            QTimer.singleShot(0, partial(_share_left_side, self.panels["Project"]))
        self._correction = correction
        self._levels = read.levels
        if self.layers.labels is not None:
            self.strokes = StrokeKeeper(
                self.layers.labels, lambda: self._correction, self.layers.window
            )
            self.strokes.changed.connect(self.strokes_changed.emit)
            self.strokes.painting.connect(self._give_way)
        self.sample_shown.emit(sample.id)
        self._look_at_wanted()
        if self._is_read_stale:
            self.show_current_prediction()

    def _give_way(self) -> None:
        """Let the engine wait while the user paints, and until the next stroke may have begun."""
        if self._session is not None and self._session.jobs:
            self._session.backend.give_way(GIVE_WAY)

    @reporting()
    def _on_prediction(self, prediction: Prediction) -> None:
        if prediction.sample_id != self._sample_id or self._session is None:
            return
        if self._correction is None:  # its files are being read, perhaps the old ones
            self._is_read_stale = True
        elif self._is_in_use(prediction.model):
            self._load_prediction(prediction)

    @reporting()
    def _on_model_changed(self, _name: str) -> None:
        if self._correction is None:  # what is being read is of the model before
            self._is_read_stale = True
        self.show_current_prediction()

    def show_current_prediction(self) -> None:
        """Show what the model in use said of the sample on screen, if it was asked."""
        if self._session is None or self._sample_id is None:
            return
        prediction = predicting.current_prediction(self._session, self._sample_id)
        if prediction is not None:
            self._load_prediction(prediction)

    def _show_large(
        self, sample: Sample, correction: Correction, pyramid: Pyramid, limits: tuple[float, float]
    ) -> None:
        if self.layers is None or self._bridge is None:
            return
        say = self.levels_progressed.emit
        large = self._large = LargeImage(
            sample.name, pyramid, limits, self.layers, self._bridge, lambda text: say(text)
        )
        self.layers.show_large(
            large.loader.levels,
            None if large.is_colored else limits,
            correction.annotation.labels,
        )
        # Only the same sample's levels are written where these are.
        large.start([left for of, left in self._leaving if of == sample.id])
        self._prepare(correction)

    def _show_unsure(self, unsure: Unsure | None) -> None:
        if unsure is None or self.layers is None:
            return
        values, guessing = unsure
        if values.dtype == np.uint8:
            self.layers.set_large_uncertainty(values, guessing)
        else:
            self.layers.set_uncertainty(values, guessing)

    def _prepare(self, correction: Correction) -> None:
        """Write beforehand what the first stroke on large labels takes a second to write."""
        write = correction.prepare()
        if write is not None:
            self.in_background(write, lambda _: None)

    def accept(self) -> None:
        """Accept the labels of the sample on screen, or take their acceptance back.

        Large labels are written in the background meanwhile.
        """
        correction = self._correction
        if correction is None or self.layers is None:
            return
        if self.is_accepting:
            return
        if self.layers.window is not None:
            is_back = correction.sample.status is Status.ACCEPTED
            self._write_acceptance(correction, is_back=is_back)
        elif correction.sample.status is Status.ACCEPTED:
            before = correction.annotation.labels
            correction.take_back()
            self.layers.replace_labels(before, correction.annotation.labels)
        else:
            correction.accept()

    def _write_acceptance(self, correction: Correction, *, is_back: bool) -> None:
        write = correction.take_back_soon() if is_back else correction.accept_soon()
        end = partial(self._end_accepting, correction, is_back)
        future = self._accepting = self.in_background(write, end)
        self._accepting_id = correction.sample.id

        def tell() -> None:
            if self._accepting is future:  # it could not be written
                self._accepting = None
            self.strokes_changed.emit()

        told = partial(self._require_bridge().call, tell)
        future.add_done_callback(lambda _: told())
        self.strokes_changed.emit()

    @property
    def is_accepting(self) -> bool:
        """Whether large labels are being written."""
        return self._accepting is not None

    def _finish_accepting(self) -> None:
        """Wait for labels that are being written: who closes the window meant it."""
        accepting, self._accepting = self._accepting, None
        if accepting is not None:
            with reporting(), suppress(CancelledError):
                accepting.result()()

    def _require_bridge(self) -> Bridge:
        if self._bridge is None:
            raise InputError("Open a project first.")
        return self._bridge

    def _end_accepting(
        self, correction: Correction, is_back: bool, commit: Callable[[], bool]
    ) -> None:
        if self._accepting is None:  # done by who would not wait for this
            return
        self._accepting = None
        if not commit() and self._correction is correction:  # something was painted meanwhile
            self._write_acceptance(correction, is_back=is_back)
        elif self._correction is correction and self.layers is not None:
            self.layers.bring_labels(correction.annotation.labels)

    def _load_prediction(self, prediction: Prediction) -> None:
        number = self._opening
        sample = self._require_session().store.sample(prediction.sample_id)
        self.in_background(
            partial(_read_maps, prediction, sample),
            partial(self._take_prediction, number),
        )

    def _take_prediction(self, number: int, maps: Maps) -> None:
        if number != self._opening or self._correction is None or self.layers is None:
            return
        labels, unsure = maps
        if isinstance(labels, PredictedMap):
            self._take_bands(number, labels, 0)
        else:
            before = self._correction.annotation.labels
            self._correction.take_prediction(labels)
            self.layers.replace_labels(before, self._correction.annotation.labels)
        self._show_unsure(unsure)
        self.sample_shown.emit(str(self._sample_id))

    def _take_bands(self, number: int, labels: PredictedMap, row: int) -> None:
        """Take a large prediction over, some rows at a time so that nothing waits."""
        correction, shape = self._correction, labels.shape
        if number != self._opening or correction is None or self.layers is None:
            return
        if row >= shape[0]:
            correction.know_prediction(labels)
            self.layers.bring_labels(correction.annotation.labels)
            self._prepare(correction)
            return
        rows = max(1, BAND_PIXELS * shape[0] // math.prod(shape))

        def take(band: npt.NDArray[np.uint8]) -> None:
            if number == self._opening and correction is self._correction:
                correction.take_part((row, *(0 for _ in shape[1:])), band)
                self._take_bands(number, labels, row + rows)

        self.in_background(lambda: labels[row : row + rows], take)


def _share_left_side(project: QWidget) -> None:
    """Give the image list more of the left side than napari's own two docks."""
    window = project.window()
    if isinstance(window, QMainWindow):
        left = Qt.DockWidgetArea.LeftDockWidgetArea
        docks = [d for d in window.findChildren(QDockWidget) if window.dockWidgetArea(d) == left]
        sizes = [380 if d.widget() is project else 300 for d in docks]
        window.resizeDocks(docks, sizes, Qt.Orientation.Vertical)


@dataclass(frozen=True)
class _Read:
    """What the files of a sample hold; of a large image what reads it, and its range."""

    image: ImageData | tuple[Pyramid, tuple[float, float]]
    start: Start
    unsure: Unsure | None
    reference: npt.NDArray[np.uint8] | None
    levels: tuple[tuple[int, ...], ...]


def _read_sample(
    sample: Sample, prediction: Prediction | None, store: ProjectStore, start: Callable[[], Start]
) -> _Read:
    began = start()
    unsure = _read_unsure(prediction, sample) if prediction is not None else None
    reference = None
    if sample.reference is not None and sample.reference.is_file():
        reference = read_mask(sample.reference, store.classes, sample.shape).labels
    levels = levels_of(sample)
    # Last: what it opens is closed by whoever gets it.
    image = open_large(sample, store.folder) if is_large(sample) else read_image(sample.path)
    return _Read(image, began, unsure, reference, levels)


def _read_maps(prediction: Prediction, sample: Sample) -> Maps:
    labels = PredictedMap(prediction, "labels", sample.shape)
    return (labels if is_large(sample) else labels[:]), _read_unsure(prediction, sample)


def _read_unsure(prediction: Prediction, sample: Sample) -> Unsure:
    kind, found = predicting.uncertainty_kind(prediction), prediction.score
    if is_large(sample):
        values = predicting.read_unsure_bytes(prediction, sample.shape)
        some = values[..., ::THINNED, ::THINNED].astype(np.float32) / np.float32(255)
        return values, shown_as_guessing(kind, some, found)
    unsure = PredictedMap(prediction, "uncertainty", sample.shape)[:].astype(np.float32, copy=False)
    return unsure, shown_as_guessing(kind, unsure, found)
