"""Import torchvision also where its compiled part does not fit torch.

The Linux wheel of torchvision is a CUDA build; beside a CPU build of torch its
operators are not registered and ``import torchvision`` fails with ``operator
torchvision::nms does not exist`` (pytorch/vision issues 9077 and 9085). The
transforms are pure Python, so declaring the two operators' schemas is enough.
This acts only after that failure.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

_libraries: list[torch.library.Library] = []  # dropping it would unregister the schemas


def import_transforms() -> ModuleType:
    """Return ``torchvision.transforms.v2``."""
    try:
        return importlib.import_module("torchvision.transforms.v2")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)  # type: ignore[no-untyped-call]
    _libraries.append(library)
    for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    return importlib.import_module("torchvision.transforms.v2")
