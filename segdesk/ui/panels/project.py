"""The Project panel: the images, where they stand, and adding more."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import QEventLoop, QModelIndex, QPoint, Qt
from qtpy.QtGui import QDragEnterEvent, QDropEvent
from qtpy.QtWidgets import (
    QAbstractItemView,
    QApplication,
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QInputDialog,
    QLineEdit,
    QListView,
    QMenu,
    QMessageBox,
    QProgressDialog,
    QWidget,
)

from segdesk.core.address import Address, is_remote
from segdesk.core.errors import InputError, SegDeskError
from segdesk.core.sample import Sample, Split, Status
from segdesk.io.images import IMAGE_SUFFIXES
from segdesk.io.sources import read_thumbnail
from segdesk.jobs.cancel import CancelToken
from segdesk.session import projects
from segdesk.session.session import Session
from segdesk.ui.bridge import notify, reporting
from segdesk.ui.sample_list import (
    SAMPLE_ROLE,
    STATUS_COLORS,
    SampleDelegate,
    SampleListModel,
    SampleListView,
    SampleOrder,
)
from segdesk.ui.widgets import ActionButton, Hint, Panel
from segdesk.ui.words import count_images

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from segdesk.ui.workbench import Workbench

NO_PROJECT = "No project is open yet. A project keeps your images, their masks and your models."
NO_IMAGES = "This project holds no images yet. Press “Add images…”, or drop image files here."


class ProjectPanel(Panel):
    """Lists the images; a click brings one on screen."""

    def __init__(self, workbench: Workbench) -> None:
        super().__init__()
        self._workbench = workbench
        self.setAcceptDrops(True)
        self.title = Hint()
        self.hint = Hint(NO_PROJECT)
        self.hint.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.model = SampleListModel(self._ask_thumbnail, self)
        self.order = SampleOrder(self)
        self.order.setSourceModel(self.model)
        self.list = self._make_list()
        #: How far the levels of the image on screen are, while they are made.
        self.levels = Hint()
        self.add_button = ActionButton(
            "Add images…",
            self.choose_images,
            "Add image files, with masks if there are any. For OME-Zarr, drop its folder here.",
        )
        self.column.addWidget(self.title)
        self.column.addWidget(self.hint)
        self._filler = QWidget()
        self.column.addWidget(self._make_filters())
        self.column.addWidget(self.list, 1)
        self.column.addWidget(self._filler, 1)
        self.column.addWidget(self.levels)
        self.address_button = ActionButton(
            "From an address…",
            self.ask_address,
            "Add an OME-Zarr image that lies on a server (https://…, s3://…). It stays there and "
            "is read piece by piece.",
        )
        self._asking: tuple[CancelToken, QProgressDialog] | None = None
        adding = QHBoxLayout()
        adding.addWidget(self.add_button, 1)
        adding.addWidget(self.address_button)
        self.column.addLayout(adding)
        self.list.setMinimumHeight(100)
        self.column.setSpacing(4)
        workbench.session_opened.connect(self._on_opened)
        workbench.session_closed.connect(self._refresh)
        workbench.session_closed.connect(self._stop_asking)
        workbench.sample_opening.connect(self._select)
        workbench.levels_progressed.connect(self.levels.say)
        self._refresh()

    def insert(self, widget: QWidget) -> None:
        """Put a face's own widget above the list: ways to get a project or images."""
        self.column.insertWidget(2, widget)

    @reporting()
    def choose_images(self) -> None:
        """Ask for image files and add them."""
        patterns = " ".join(f"*{suffix}" for suffix in sorted(IMAGE_SUFFIXES))
        names, _ = QFileDialog.getOpenFileNames(
            self, "Add images", str(self._workbench.last_folder), f"Images ({patterns})"
        )
        if names:
            paths = [Path(name) for name in names]
            self._workbench.last_folder = paths[0].parent
            self.add(paths, self._ask_masks())

    @reporting()
    def ask_address(self) -> None:
        """Ask for the address of an image and add it."""
        text, is_given = QInputDialog.getText(
            self,
            "Add an image from an address",
            "Address of an OME-Zarr image (https://…, s3://…):",
        )
        if is_given and text.strip():
            self.add_from([text.strip()])

    def add_from(self, addresses: Sequence[str]) -> None:
        """Add images that lie on servers, which are asked beside the window.

        Raises
        ------
        InputError
            One is no address, or others are being asked for.
        """
        for address in addresses:
            if not is_remote(address):
                raise InputError(
                    f"{address!r} is no address of a server, such as "
                    "https://host/image.ome.zarr; use “Add images…” for files of this computer."
                )
        if self._asking is not None:
            raise InputError("A server is being asked already; wait for it, or cancel that first.")

        def look(token: CancelToken) -> tuple[list[projects.NewImage], list[str]]:
            found, refused = [], []
            for address in addresses:
                token.check()
                try:
                    found.append(projects.NewImage(address, look=projects.look_at(address)))
                except InputError as error:
                    refused.append(error.message)
            return found, refused

        @reporting()
        def arrived(asked: Future[tuple[list[projects.NewImage], list[str]]]) -> None:
            self._stop_asking()
            self._add_new(*asked.result())

        token = self._workbench.ask(look, arrived)
        name = self.fontMetrics().elidedText(addresses[0], Qt.TextElideMode.ElideMiddle, 400)
        more = f" and {len(addresses) - 1} more" if addresses[1:] else ""
        dialog = QProgressDialog(f"Asking for {name}{more}…", "Cancel", 0, 0, self)
        dialog.setMinimumDuration(300)
        dialog.setValue(0)  # from here on it counts until it shows itself
        dialog.canceled.connect(self._stop_asking)
        self._asking = token, dialog

    def _stop_asking(self) -> None:
        if self._asking is not None:
            (token, dialog), self._asking = self._asking, None
            token.cancel()
            dialog.hide()
            dialog.deleteLater()

    def add(self, paths: list[Path], masks: Path | None = None) -> projects.Added | None:
        """Add images to the project, reporting what was read and what was not."""
        images = projects.find_images(paths)
        added = self._add_new(
            projects.match_masks(images, masks)
            if masks is not None
            else [projects.NewImage(path) for path in images]
        )
        for text in projects.describe_others(paths):
            notify(text)
        return added

    def _add_new(
        self, new: list[projects.NewImage], refused: Sequence[str] = ()
    ) -> projects.Added | None:
        session = self._workbench.session
        if session is None:
            return None
        dialog = QProgressDialog("Reading images…", "", 0, len(new), self)
        dialog.setCancelButton(None)
        dialog.setWindowModality(Qt.WindowModality.WindowModal)
        dialog.setMinimumDuration(300)

        def progress(done: int, _total: int) -> None:
            dialog.setValue(done)
            # No clicks: closing the project, for one, would take the store from under this.
            QApplication.processEvents(QEventLoop.ProcessEventsFlag.ExcludeUserInputEvents)

        try:
            added = projects.add_images(session, new, skip_bad=True, progress=progress)
        finally:
            dialog.close()
            dialog.deleteLater()
        added.refused[:0] = refused
        _tell(added)
        return added

    @reporting()
    def remove(self, sample_id: str) -> None:
        """Take an image out of the project; one on screen makes room for another first."""
        session = self._workbench.session
        if session is None:
            return
        if sample_id == self._workbench.current_sample_id:
            others = [s.id for s in session.store.samples() if s.id != sample_id]
            if not others:
                raise InputError("This is the project's only image; add another one first.")
            self._workbench.show_sample(others[0])
        kept = projects.remove_image(session, sample_id)
        notify(f"Removed. Its labels lie in {kept}." if kept else "Removed.")

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        """Accept files and addresses while a project is open."""
        if self._workbench.session is not None and event.mimeData().hasUrls():
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        """Add the files and addresses dropped here."""
        urls = event.mimeData().urls()
        event.acceptProposedAction()
        if paths := [Path(url.toLocalFile()) for url in urls if url.isLocalFile()]:
            with reporting():
                self.add(paths)
        if addresses := [url.toString() for url in urls if not url.isLocalFile()]:
            with reporting():
                self.add_from(addresses)

    # How ---------------------------------------------------------------------

    def _make_list(self) -> QListView:
        view = SampleListView()
        view.setModel(self.order)
        view.setItemDelegate(SampleDelegate(view))
        view.setMouseTracking(True)
        view.setUniformItemSizes(True)
        view.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        view.setAccessibleName("Images of the project")
        view.clicked.connect(self._open)
        view.activated.connect(self._open)
        view.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        view.customContextMenuRequested.connect(self._offer_removal)
        return view

    def _offer_removal(self, position: QPoint) -> None:
        sample = self.list.indexAt(position).data(SAMPLE_ROLE)
        if not isinstance(sample, Sample):
            return
        menu = QMenu(self)
        action = menu.addAction(f"Remove {sample.name} from the project")
        action.setToolTip(
            "The image is left where it is; its labels are kept in the folder “removed”."
        )
        menu.setToolTipsVisible(True)
        if menu.exec(self.list.viewport().mapToGlobal(position)) is action:
            self.remove(sample.id)
        menu.deleteLater()

    def _make_filters(self) -> QWidget:
        self.filter = QLineEdit()
        self.filter.setPlaceholderText("Find…")
        self.filter.setClearButtonEnabled(True)
        self.status = QComboBox()
        self.status.addItem("all", None)
        for status in STATUS_COLORS:
            self.status.addItem(status.value, status.value)
        self.status.setToolTip("Which images are listed")
        self.sorting = QComboBox()
        self.sorting.addItems(["by name", "unsure first"])
        self.sorting.setToolTip("In which order they are listed")
        self.filter.textChanged.connect(lambda: self._apply_filter())
        self.status.currentIndexChanged.connect(lambda: self._apply_filter())
        self.sorting.currentIndexChanged.connect(lambda: self._apply_filter())
        row = QWidget()
        line = QHBoxLayout(row)
        line.setContentsMargins(0, 0, 0, 0)
        self.status.setFixedWidth(94)
        self.sorting.setFixedWidth(106)
        line.addWidget(self.filter, 1)
        line.addWidget(self.status)
        line.addWidget(self.sorting)
        self._filters = row
        return row

    def _apply_filter(self) -> None:
        chosen = self.status.currentData()
        status = Status(chosen) if chosen else None
        by_uncertainty = self.sorting.currentIndex() == 1
        self.order.choose(self.filter.text(), status, by_uncertainty=by_uncertainty)
        self._say()

    @reporting()
    def _on_opened(self, session: Session) -> None:
        self.model.forget_thumbnails()
        session.events.samples_added.connect(self._refresh)
        session.events.sample_removed.connect(self._refresh)
        session.events.sample_changed.connect(self._on_sample_changed)
        self._refresh()

    @reporting()
    def _on_sample_changed(self, sample: Sample) -> None:
        self.model.replace(sample)
        self._say()

    @reporting()
    def _refresh(self, _added: object = None) -> None:
        session = self._workbench.session
        self.model.set_samples(session.store.samples() if session is not None else [])
        is_open = session is not None
        for widget in (self._filters, self.list, self.add_button, self.address_button):
            widget.setVisible(is_open)
        self._filler.setVisible(not is_open)
        self._say()
        if self._workbench.current_sample_id:
            self._select(self._workbench.current_sample_id)

    def _say(self) -> None:
        session = self._workbench.session
        if session is None:
            self.title.say("")
            self.hint.say(NO_PROJECT)
            return
        samples = session.store.samples()
        held = sum(s.split is Split.VALIDATION for s in samples)
        name = f"<b>{session.store.folder.stem}</b>"
        extra = f", {held} held back" if held else ""
        self.title.say(f"{name}: {count_images(len(samples))}{extra}" if samples else name)
        self.title.setToolTip(
            f"<qt>{session.store.folder}<br>Images marked “held back” check the models; "
            "they are never learnt from.</qt>"
        )
        if not samples:
            self.hint.say(NO_IMAGES)
        elif not self.order.rowCount():
            self.hint.say("No image fits the filter above the list.")
        else:
            self.hint.say("")

    def _open(self, index: QModelIndex) -> None:
        sample = index.data(SAMPLE_ROLE)
        if isinstance(sample, Sample) and sample.id != self._workbench.current_sample_id:
            with reporting():
                self._workbench.show_sample(sample.id)

    @reporting()
    def _select(self, sample_id: str) -> None:
        row = self.model.row_of(sample_id)
        if row >= 0:
            self.list.setCurrentIndex(self.order.mapFromSource(self.model.index(row)))

    def _ask_thumbnail(self, sample: Sample) -> None:
        with reporting():
            self._workbench.in_background(
                partial(_thumbnail, sample.path),
                partial(self._take_thumbnail, sample.id),
                is_far=is_remote(sample.path),
            )

    def _take_thumbnail(self, sample_id: str, pixels: npt.NDArray[np.uint8] | None) -> None:
        if pixels is not None:
            self.model.set_thumbnail(sample_id, pixels)

    def _ask_masks(self) -> Path | None:
        box = QMessageBox(self)
        box.setWindowTitle("Add images")
        box.setText("Are there masks for these images already?")
        box.setInformativeText(
            "A mask is a picture of the same name and size in a folder of its own."
        )
        choose = box.addButton("Choose folder of masks…", QMessageBox.ButtonRole.AcceptRole)
        box.addButton("No masks", QMessageBox.ButtonRole.RejectRole)
        box.exec()
        if box.clickedButton() is not choose:
            return None
        start = str(self._workbench.last_folder)
        folder = QFileDialog.getExistingDirectory(self, "Folder of masks", start)
        return Path(folder) if folder else None


def _thumbnail(path: Address) -> npt.NDArray[np.uint8] | None:
    """Read a thumbnail; a file that is gone is reported when it is opened."""
    try:
        return read_thumbnail(path)
    except SegDeskError:
        return None


def _tell(added: projects.Added) -> None:
    count = len(added.samples)
    if count:
        notify(f"{count} image{'s were' if count > 1 else ' was'} added.")
    for text in added.notes[:3]:
        notify(text)
    if len(added.notes) > 3:
        notify(f"… and {len(added.notes) - 3} more read the same way.")
    if added.refused:
        more = f" And {len(added.refused) - 1} more could not be used." if added.refused[1:] else ""
        notify(added.refused[0] + more, "warning")
