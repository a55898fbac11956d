"""Prediction on a CUDA card gives what the processor gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segdesk.config.inference import InferenceConfig
from segdesk.inference.predictor import Predictor
from segdesk.io.packages import bundled_packages
from segdesk.nn.device import pick_device
from segdesk.nn.weights import load_model


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_cuda_agrees_with_the_processor() -> None:
    folder = bundled_packages()["nuclei-unet"]
    image = np.random.default_rng(0).integers(0, 255, (300, 260, 3)).astype(np.uint8)
    maps = []
    for device in ("cpu", "cuda"):
        predictor = Predictor(load_model(folder), pick_device(device).device)
        maps.append(predictor.predict_plane(predictor.prepare(image), InferenceConfig()))
    # TF32 convolutions keep about three digits.
    assert np.abs(maps[0] - maps[1]).max() < 2e-2
    assert (maps[0].argmax(0) == maps[1].argmax(0)).mean() > 0.999
