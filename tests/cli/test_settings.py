"""``segdesk settings``: what ``--set`` takes can be looked up, and holds."""

from __future__ import annotations

import json

import pytest

from segdesk.cli import main
from segdesk.config.training import TrainingConfig


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


def test_every_setting_is_listed_with_its_limits(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "settings", "train", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert set(rows) == set(TrainingConfig.model_fields)
    assert rows["crop_size"]["limits"] == "from 32 to 2048 in steps of 16 px"
    assert rows["recipe"]["limits"].startswith("quick, standard, full")
    # What is listed as the default is what is taken.
    defaults = TrainingConfig().model_dump(mode="json")
    assert {name: row["default"] for name, row in rows.items()} == defaults
    assert all(row["description"] for row in rows.values())


def test_people_read_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "settings", "predict")
    assert code == 0
    assert "tile_size=" in out


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "settings", "dance")
    assert code == 2
    assert "There are no settings of 'dance'" in err
