"""Short of memory for real: a process that may have little."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from little_memory import answer_of

SCRIPT = """
import json, resource, sys
import numpy as np, psutil, torch
from segdesk.config.inference import InferenceConfig
from segdesk.inference.predictor import Predictor
from segdesk.nn.weights import load_model
from pathlib import Path

folder, tile, spare, side = Path(sys.argv[1]), *map(int, sys.argv[2:5])
said = []
first, predictor = (
    Predictor(load_model(folder), torch.device("cpu"), said.append) for _ in range(2)
)
image = np.random.default_rng(0).random((side, side, 1), np.float32)
config = InferenceConfig(tile_size=tile, overlap=64, precision="single")
# Small, so that nothing of its own is left for the large one; libraries and threads are.
predictor.predict_plane(image[:64, :64], config)
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
had = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (had + spare * 2**20, hard))
tight = predictor.predict_plane(image, config)
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
free = first.predict_plane(image, config)
print(json.dumps({"said": said, "apart": float(np.abs(free - tight).mean())}))
"""


def predict_in_little(folder: Path, *, tile: int, spare: int, side: int) -> dict[str, object]:
    """Predict with ``spare`` MiB more than the process has already."""
    return answer_of(SCRIPT, folder, tile, spare, side)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory so")
def test_short_of_memory_tiles_become_smaller_and_the_result_is_there(
    tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    folder = make_model(tmp_path / "m")
    answer = predict_in_little(folder, tile=1024, spare=64, side=900)
    said = str(answer["said"])
    assert "Memory ran out on the processor: tiles of 480 pixels from here on." in said
    assert np.isclose(float(str(answer["apart"])), 0, atol=0.02)
