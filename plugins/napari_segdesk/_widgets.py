"""Widgets that napari docks; all of one viewer share one workbench."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from qtpy.QtCore import QEvent
from qtpy.QtWidgets import QApplication, QMainWindow, QTabWidget, QVBoxLayout, QWidget

from napari_segdesk._start import StartWidget
from segdesk.app.settings import load_settings, save_settings
from segdesk.config.app import RunHabits
from segdesk.ui.bridge import reporting
from segdesk.ui.panels.project import ProjectPanel
from segdesk.ui.workbench import Workbench

if TYPE_CHECKING:
    from napari import Viewer

#: By id of the viewer. A weak dictionary would not do: its values hold their keys.
workbenches: Final[dict[int, Workbench]] = {}


def workbench_of(viewer: Viewer) -> Workbench:
    """Return the viewer's workbench, made at the first call.

    It is closed, and its workers ended, when the viewer's window goes away.
    """
    # napari hands widgets a proxy, a new one each time.
    viewer = getattr(viewer, "__wrapped__", viewer)
    known = workbenches.get(id(viewer))
    if known is not None:
        return known
    workbench = Workbench(viewer)
    workbench.set_habits(load_settings().habits)
    workbench.habits_changed.connect(_keep_habits)
    project = workbench.panels["Project"]
    if isinstance(project, ProjectPanel):
        project.insert(StartWidget(workbench))
    workbenches[id(viewer)] = workbench
    return workbench


@reporting()
def _keep_habits(habits: RunHabits) -> None:
    save_settings(load_settings().model_copy(update={"habits": habits}))


def _forget(key: int) -> None:
    workbench = workbenches.pop(key, None)
    if workbench is not None:
        workbench.close(is_window_gone=True)


class Docked(QWidget):
    """What napari docks: lends panels of the workbench as long as it is docked.

    napari throws a widget away whose dock is closed; the panels go on living. A
    panel moves when another dock asks for it.
    """

    names: Sequence[str] = ()

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self._workbench = workbench_of(napari_viewer)
        self._is_watching = False
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        panels = [self._workbench.panels[name] for name in self.names]
        if len(panels) == 1:
            column.addWidget(panels[0])
            panels[0].show()
            return
        tabs = QTabWidget()
        for name, panel in zip(self.names, panels, strict=True):
            tabs.addTab(panel, name)
        column.addWidget(tabs)

    def event(self, event: QEvent) -> bool:
        """Give the panels back before this widget is thrown away."""
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            for name in self.names:
                panel = self._workbench.panels[name]
                if self.isAncestorOf(panel):
                    panel.setParent(None)
        elif event.type() == QEvent.Type.Show and not self._is_watching:
            self._watch_window()
        return super().event(event)

    def _watch_window(self) -> None:
        window, key = self.window(), id(self._workbench.viewer)
        if isinstance(window, QMainWindow):
            self._is_watching = True
            window.destroyed.connect(lambda: _forget(key))
            application = QApplication.instance()
            if application is not None:
                application.aboutToQuit.connect(lambda: _forget(key))


class ProjectDock(Docked):
    """The panel that lists the images."""

    names = ("Project",)


class PredictDock(Docked):
    """The panel that asks the model."""

    names = ("Predict",)


class CorrectDock(Docked):
    """The panel for painting."""

    names = ("Correct",)


class TrainDock(Docked):
    """The panel for fine-tuning."""

    names = ("Train",)


class CompareDock(Docked):
    """The panel that compares two models."""

    names = ("Compare",)


class TrustDock(Docked):
    """The panel that says whether the model can be trusted."""

    names = ("Trust",)


class SegmentAndCorrect(Docked):
    """All six panels."""

    names = ("Project", "Predict", "Correct", "Train", "Compare", "Trust")
