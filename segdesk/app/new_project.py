"""The dialog for a new project."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtWidgets import (
    QDialog,
    QDialogButtonBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from segdesk.core.classes import ClassMap
from segdesk.core.errors import InputError
from segdesk.io.store import SUFFIX
from segdesk.session.projects import parse_classes


class NewProjectDialog(QDialog):
    """Asks for a name, a folder and the classes; says what is wrong as one types."""

    def __init__(self, folder: Path, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("New project")
        self.setMinimumWidth(520)
        self.name = QLineEdit("my project")
        self.folder = QLineEdit(str(folder))
        self.classes = QLineEdit("background, nucleus")
        self.classes.setToolTip("The background comes first; the bundled model knows these two.")
        browse = QPushButton("Choose…")
        browse.clicked.connect(self._choose)
        row = QHBoxLayout()
        row.addWidget(self.folder)
        row.addWidget(browse)
        form = QFormLayout()
        form.addRow("Name", self.name)
        form.addRow("Folder", row)
        form.addRow("Classes", self.classes)
        self._hint = QLabel()
        self._hint.setWordWrap(True)
        buttons = QDialogButtonBox(
            QDialogButtonBox.StandardButton.Ok | QDialogButtonBox.StandardButton.Cancel
        )
        buttons.accepted.connect(self.accept)
        buttons.rejected.connect(self.reject)
        self._ok = buttons.button(QDialogButtonBox.StandardButton.Ok)
        self._ok.setText("Make the project")
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addWidget(self._hint)
        layout.addWidget(buttons)
        for edit in (self.name, self.folder, self.classes):
            edit.textChanged.connect(self._check)
        self._check()

    @property
    def path(self) -> Path:
        """The project's folder."""
        return Path(self.folder.text()) / f"{self.name.text().strip()}{SUFFIX}"

    def class_map(self) -> ClassMap:
        """Return the classes.

        Raises
        ------
        InputError
            They cannot be used; the OK button is grey then.
        """
        return parse_classes(self.classes.text())

    def _choose(self) -> None:
        chosen = QFileDialog.getExistingDirectory(
            self, "Folder for the project", self.folder.text()
        )
        if chosen:
            self.folder.setText(chosen)

    def _problem(self) -> str:
        if not self.name.text().strip():
            return "Give the project a name."
        if not Path(self.folder.text()).is_dir():
            return "Choose a folder that exists."
        if self.path.exists():
            return f"{self.path} exists already; choose another name."
        try:
            self.class_map()
        except InputError as error:
            return error.message
        return ""

    def _check(self) -> None:
        problem = self._problem()
        self._ok.setEnabled(not problem)
        self._hint.setText(problem or f"The project will be the folder {self.path}.")
