"""The desktop program's window: a public napari viewer with SegDesk around it."""

from __future__ import annotations

import threading
from pathlib import Path

from napari import Viewer
from napari.utils.notifications import Notification, notification_manager, show_info
from qtpy.QtCore import QEvent, QObject, Qt, QTimer, QUrl
from qtpy.QtGui import QAction, QCloseEvent, QDesktopServices, QIcon
from qtpy.QtWidgets import QDockWidget, QFileDialog, QMainWindow, QMenu, QMessageBox

from segdesk import __version__
from segdesk.app.closing import ClosingDialog
from segdesk.app.new_project import NewProjectDialog
from segdesk.app.settings import data_folder, load_settings, log_folder, save_settings
from segdesk.app.start_page import StartPage
from segdesk.config.app import OnClose, RunHabits
from segdesk.core.errors import InputError
from segdesk.io.store import SUFFIX, ProjectStore
from segdesk.session import training
from segdesk.session.sample_project import make_sample_project
from segdesk.session.session import Session
from segdesk.ui.bridge import reporting
from segdesk.ui.workbench import Workbench
from segdesk_resources import icon_path

SIZE = (1500, 940)


class DesktopWindow(QObject):
    """SegDesk's window and everything in it.

    The main window is reached through a docked panel, which is public in napari
    and in Qt; nothing private of napari's is touched here.

    Attributes
    ----------
    viewer, workbench, main
        The napari viewer, SegDesk's panels, and the Qt window.
    start_page
        Covers the image until a project is open.
    is_closed
        Whether the window was closed; ``main`` is gone then.
    """

    def __init__(self, *, show: bool = True) -> None:
        super().__init__()
        self.viewer = Viewer(title="SegDesk", show=False, show_welcome_screen=False)
        self.workbench = Workbench(self.viewer)
        self.workbench.dock()
        window = self.workbench.panels["Project"].window()
        if not isinstance(window, QMainWindow):
            raise TypeError("napari docked the panels somewhere else than in its main window")
        self.main: QMainWindow = window
        self.main.setWindowIcon(QIcon(str(icon_path())))
        self.main.resize(*SIZE)
        self.main.installEventFilter(self)
        self._arrange()
        self._docks = [d for d in self.main.findChildren(QDockWidget) if not d.isHidden()]
        self.is_closed = self._closes_later = False
        self._settings = load_settings()
        self.workbench.set_habits(self._settings.habits)
        self.workbench.habits_changed.connect(self._on_habits)
        self.start_page = self._make_start_page()
        self._menu = self._make_menu()
        self.workbench.session_opened.connect(self._on_opened)
        self.workbench.session_closed.connect(self._on_closed)
        self.workbench.closing.connect(self._on_closing)
        if self._settings.last_folder is not None:
            self.workbench.last_folder = self._settings.last_folder
        notification_manager.notification_ready.connect(self._on_message)
        if show:
            self.viewer.window.show()
        self._show_start_page()

    # What a user can do --------------------------------------------------------

    @reporting()
    def open_project(self, path: Path) -> None:
        """Open a project; a problem is shown and leaves the old one open."""
        self._switch(Session(ProjectStore.open(path)))

    @reporting()
    def open_sample(self) -> None:
        """Open the sample project, where it was left last time."""
        folder = data_folder() / f"sample{SUFFIX}"
        if folder.exists():
            self._switch(Session(ProjectStore.open(folder)))
        else:
            self._start_sample(folder)

    @reporting()
    def start_sample_over(self) -> None:
        """Make a fresh copy of the sample project; the old one stays on disk."""
        number = 2
        while (data_folder() / f"sample-{number}{SUFFIX}").exists():
            number += 1
        self._start_sample(data_folder() / f"sample-{number}{SUFFIX}")

    @reporting()
    def choose_project(self) -> None:
        """Ask for a project folder and open it."""
        start = str(self.workbench.last_folder)
        chosen = QFileDialog.getExistingDirectory(self.main, f"Open a project ({SUFFIX})", start)
        if chosen:
            self.open_project(Path(chosen))

    @reporting()
    def new_project(self) -> None:
        """Ask for a name and classes and make a project."""
        dialog = NewProjectDialog(self.workbench.last_folder, self.main)
        if dialog.exec() == NewProjectDialog.DialogCode.Accepted:
            self._switch(Session(ProjectStore.create(dialog.path, dialog.class_map())))
            show_info("Add your images with the button in the Project panel.")

    def close_project(self) -> None:
        """Close the project and show the start page."""
        if self._may_close():
            self.workbench.close()

    # How -----------------------------------------------------------------------

    def _start_sample(self, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._switch(make_sample_project(folder))

    def _switch(self, session: Session) -> None:
        """Show another project, which could be opened; the one before may have a run."""
        if self._may_close():
            self.workbench.open(session)
        else:
            session.close()

    def _make_start_page(self) -> StartPage:
        cover = self.main.centralWidget()
        if cover is None:
            raise TypeError("napari's window has no central widget")
        page = StartPage(cover, icon_path())
        page.sample_wanted.connect(self.open_sample)
        page.new_wanted.connect(self.new_project)
        page.open_wanted.connect(self.choose_project)
        page.project_wanted.connect(self.open_project)
        return page

    def _make_menu(self) -> QMenu:
        menu = QMenu("&SegDesk", self.main)
        bar = self.main.menuBar()
        first = bar.actions()[0] if bar.actions() else None
        bar.insertMenu(first, menu) if first is not None else bar.addMenu(menu)
        entries = (
            ("New project…", self.new_project),
            ("Open a project…", self.choose_project),
            ("Open the sample project", self.open_sample),
            ("Start the sample project over", self.start_sample_over),
            ("Close project", self.close_project),
            None,
            ("Show project folder", self._show_folder),
            ("Show log folder", self._show_logs),
            ("About SegDesk", self._about),
            None,
            ("Quit", self.main.close),
        )
        for entry in entries:
            if entry is None:
                menu.addSeparator()
                continue
            title, slot = entry
            action = QAction(title, self.main)
            action.triggered.connect(lambda _=False, slot=slot: slot())
            menu.addAction(action)
        return menu

    def _on_message(self, message: Notification) -> None:
        """Say on the start page what napari says beneath it."""
        if threading.current_thread() is threading.main_thread() and self.start_page.isVisible():
            self.start_page.say_problem(message.message)

    def _on_opened(self, session: Session) -> None:
        self.start_page.say_problem("")
        self.start_page.hide()
        self._show_docks(True)
        folder = session.store.folder
        self.viewer.title = f"{folder.stem} — SegDesk"
        self._settings = self._settings.with_recent(folder)
        self._save_settings()
        samples = session.store.samples()
        if samples:
            # After the panels have filled their lists.
            QTimer.singleShot(0, lambda: self._show_first(samples[0].id))

    @reporting()
    def _show_first(self, sample_id: str) -> None:
        if self.workbench.session is not None and self.workbench.current_sample_id is None:
            self.workbench.show_sample(sample_id)

    def _on_closed(self) -> None:
        self.viewer.title = "SegDesk"
        self._show_start_page()

    def _on_closing(self, text: str) -> None:
        """Cover the image while the project's processes end: nothing can be done with it now."""
        self.start_page.say_busy(text)
        if text:
            self.start_page.show()
            self.start_page.raise_()
        elif self._closes_later:
            QTimer.singleShot(0, self.main.close)

    def _show_start_page(self) -> None:
        self._show_docks(False)
        self.start_page.show_recent(self._settings.recent)
        self.start_page.show()
        self.start_page.raise_()

    def _arrange(self) -> None:
        """Lay napari's layer list and layer controls over each other, as two tabs.

        Under each other, with the image list below, they would need more height
        than a laptop's screen has.
        """
        left = Qt.DockWidgetArea.LeftDockWidgetArea
        ours = {panel.parentWidget() for panel in self.workbench.panels.values()}
        docks = [
            dock
            for dock in self.main.findChildren(QDockWidget)
            if dock not in ours and self.main.dockWidgetArea(dock) == left
        ]
        for dock in docks[1:]:
            self.main.tabifyDockWidget(docks[0], dock)

    def _show_docks(self, visible: bool) -> None:
        for dock in self._docks:
            dock.setVisible(visible)
            if visible and "list" in dock.windowTitle():
                dock.raise_()
        if visible:
            self.workbench.raise_panel("Predict")

    def _on_habits(self, habits: RunHabits) -> None:
        self._settings = self._settings.model_copy(update={"habits": habits})
        self._save_settings()

    def _save_settings(self) -> None:
        try:
            save_settings(self._settings)
        except InputError as error:
            show_info(error.message)

    @reporting()
    def _show_folder(self) -> None:
        session = self.workbench.session
        if session is None:
            raise InputError("Open a project first.")
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(session.store.folder)))

    def _show_logs(self) -> None:
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(log_folder())))

    def _about(self) -> None:
        text = (
            f"<b>SegDesk {__version__}</b><br>Segment images, correct the masks where the model "
            "is unsure, and fine-tune it in the background.<br><br>Built on napari. BSD-3-Clause."
        )
        QMessageBox.about(self.main, "About SegDesk", text)

    def _may_close(self) -> bool:
        """See to a run under way before the project is closed; False to stay."""
        session = self.workbench.session
        if session is None or not training.is_under_way(session):
            return True
        habits = self.workbench.habits
        choice: OnClose | None = habits.on_close
        if choice is OnClose.ASK:
            dialog = ClosingDialog(self.main)
            choice = dialog.ask()
            if choice is not None and dialog.always.isChecked():
                self.workbench.set_habits(habits.model_copy(update={"on_close": choice}))
            dialog.deleteLater()
        if choice is OnClose.GO_ON:
            training.leave_running(session)
        return choice is not None

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Ask before a run is ended, and end the workers before the window goes."""
        if watched is self.main and isinstance(event, QCloseEvent):
            event.ignore()
            if self.start_page.is_busy:
                self._closes_later = True
                return True
            if not self._may_close():
                return True
            self._settings = self._settings.model_copy(
                update={"last_folder": self.workbench.last_folder}
            )
            self._save_settings()
            self.workbench.session_closed.disconnect(self._on_closed)
            notification_manager.notification_ready.disconnect(self._on_message)
            self.workbench.close()
            self.main.removeEventFilter(self)
            self.is_closed = True
            # Closed by its frame, napari's window would stay in memory; closed by the
            # viewer it goes. Not from within its own close event.
            QTimer.singleShot(0, self.viewer.close)
            return True
        return super().eventFilter(watched, event)
