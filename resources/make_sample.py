"""Copy the sample project's images and masks from the nuclei data set (CC0).

    python resources/make_sample.py --data DIR

Six stained images to correct come from ``train``, which the shipped model never
saw (it learnt from fluorescence only); the six that are judged, and the
fluorescence images, come from ``val``. Five stained images are held back, as many as
a verdict on a new model needs; the demo labels one of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

CORRECT = ["0d3640c1f1b8", "3b0709483b1e", "420f43d21dba", "6ab24e7e1f6c", "a90401357d50"]
CORRECT_HELD_BACK = ["cbca32daaae3"]
JUDGE_HELD_BACK = ["13f2bec0a24c", "337b6eed0726", "79fe419488ba", "ae570a676961"]
JUDGE = ["b909aa8f6f4b", "ea94ba4b01d1"]
FLUORESCENCE = ["2bf594e9d06f", "37ed50eea5a1", "4948e3dfe048", "64eeef16fdc4", "8f6e49e474eb",
                "f8e74d4006dd"]  # fmt: skip


def main() -> None:
    """Write images, masks and ``sample.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    target = Path(__file__).parent / "segdesk_resources" / "sample"
    groups = [
        (FLUORESCENCE, "val", "fluorescence", "judge", "train"),
        (CORRECT, "train", "stained", "correct", "train"),
        (CORRECT_HELD_BACK, "train", "stained", "correct", "validation"),
        (JUDGE_HELD_BACK, "val", "stained", "judge", "validation"),
        (JUDGE, "val", "stained", "judge", "train"),
    ]
    entries = []
    for names, source, kind, role, split in groups:
        for origin in names:
            number = 1 + sum(entry["kind"] == kind for entry in entries)
            name = f"{kind}-{number:02d}"
            entries.append(
                {"name": name, "kind": kind, "role": role, "split": split, "origin": origin}
            )
            for folder in ("images", "masks"):
                (target / folder).mkdir(parents=True, exist_ok=True)
                picture = Image.open(data / source / folder / f"{origin}.png")
                picture.save(target / folder / f"{name}.png", optimize=True)
    document = {
        "source": "2018 Data Science Bowl nuclei, Broad Bioimage Benchmark Collection BBBC038",
        "license": "CC0-1.0",
        "images": entries,
    }
    (target / "sample.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
