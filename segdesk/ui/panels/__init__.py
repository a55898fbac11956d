"""One panel per task: Project, Predict, Correct, Train, Compare, Trust."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segdesk.ui.panels.compare import ComparePanel
from segdesk.ui.panels.correct import CorrectPanel
from segdesk.ui.panels.predict import PredictPanel
from segdesk.ui.panels.project import ProjectPanel
from segdesk.ui.panels.train import TrainPanel
from segdesk.ui.panels.trust import TrustPanel

if TYPE_CHECKING:
    from qtpy.QtWidgets import QWidget

    from segdesk.ui.workbench import Workbench


def make_panels(workbench: Workbench) -> dict[str, QWidget]:
    """Make the panels in the order of the work."""
    return {
        "Project": ProjectPanel(workbench),
        "Predict": PredictPanel(workbench),
        "Correct": CorrectPanel(workbench),
        "Train": TrainPanel(workbench),
        "Compare": ComparePanel(workbench),
        "Trust": TrustPanel(workbench),
    }
