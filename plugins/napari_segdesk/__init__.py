"""The napari plugin: SegDesk's panels in a plain napari."""

from napari_segdesk._widgets import (
    CompareDock,
    CorrectDock,
    PredictDock,
    ProjectDock,
    SegmentAndCorrect,
    TrainDock,
    TrustDock,
)

__all__ = [
    "CompareDock",
    "CorrectDock",
    "PredictDock",
    "ProjectDock",
    "SegmentAndCorrect",
    "TrainDock",
    "TrustDock",
]
