"""Classes of a model under other names: what is taken for the same, and what must be asked."""

from __future__ import annotations

import pytest

from segdesk.session.class_names import suggest


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (["Nuclei"], ["nucleus"], {"Nuclei": "nucleus"}),
        (["cells", "Cell walls"], ["cell_wall", "CELL"],
         {"cells": "CELL", "Cell walls": "cell_wall"}),
        (["bodies", "boxes", "Glasses"], ["box", "body", "glass"],
         {"bodies": "body", "boxes": "box", "Glasses": "glass"}),
        (["colour"], ["color"], {"colour": "color"}),
        (["nucleolus"], ["nucleus"], {}),
        (["polyp"], ["lesion"], {}),
        # The exact one wins, and each is used once.
        (["walls", "wall."], ["wall"], {"walls": "wall"}),
    ],
)  # fmt: skip
def test_names_that_are_written_otherwise_are_suggested(
    ours: list[str], theirs: list[str], expected: dict[str, str]
) -> None:
    assert suggest(ours, theirs) == expected
