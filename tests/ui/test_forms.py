from __future__ import annotations

from typing import Any

import pytest
from pytestqt.qtbot import QtBot
from qtpy.QtWidgets import QAbstractSpinBox

from segdesk.config.app import RunHabits
from segdesk.config.inference import InferenceConfig
from segdesk.config.knobs import Knobs
from segdesk.config.training import Recipe, TrainingConfig
from segdesk.ui.forms import KnobsForm, ScientificSpinBox
from segdesk.ui.widgets import Hint

OTHER: dict[type[Knobs], dict[str, Any]] = {
    InferenceConfig: {
        "device": "cpu",
        "uncertainty": "entropy",
        "passes": 20,
        "companions": "a,b",
        "calibrated": False,
        "precision": "single",
        "normalization": "zscore",
        "channels": "0,2,1",
        "tile_size": 256,
        "overlap": 32,
    },
    TrainingConfig: {
        "recipe": "head",
        "steps": 77_777,
        "quick_steps": 33,
        "learning_rate": 3e-5,
        "encoder_rate": 0.1,
        "head_rate": 10.0,
        "optimizer": "sgd",
        "momentum": 0.45,
        "schedule": "poly",
        "warm_up": 0.25,
        "clip": 0.5,
        "patience": 4,
        "replay": 0.85,
        "batch_size": 13,
        "crop_size": 1024,
        "loss": "border_cross_entropy",
        "class_weights": "median_frequency",
        "foreground_weight": 7.5,
        "foreground_share": 0.35,
        "focal_gamma": 0.5,
        "focal_alpha": 0.25,
        "dice_squared": True,
        "tversky_beta": 0.3,
        "border_weight": 2.5,
        "border_sigma": 12.0,
        "freeze_norm": True,
        "augment": "none",
        "elastic": 0.35,
        "blur": 0.15,
        "noise": 0.45,
        "corrected_weight": 2.5,
        "same_classes": "polyp=lesion",
        "evaluate_every": 7,
        "weight_decay": 2e-6,
        "averaging": 0.5,
        "seed": 2**31 - 1,
        "device": "cuda",
        "devices": 4,
        "nodes": 16,
        "precision": "bfloat16",
    },
    RunHabits: {"use_better": True, "on_close": "go on"},
}


def test_words_stand_beside_values_and_a_widget_below_its_knob(qtbot: QtBot) -> None:
    form = KnobsForm(TrainingConfig)
    qtbot.addWidget(form)
    box: Any = form.editors["recipe"].widget
    form.annotate("recipe", {Recipe.QUICK: "about 8 s"})
    assert [box.itemText(n) for n in range(2)] == ["quick: about 8 s", "standard"]
    box.setCurrentIndex(0)
    assert form.value().recipe is Recipe.QUICK
    note = form.editors["recipe"].note
    assert isinstance(note, Hint)
    assert "seconds" in note.text()
    form.annotate("recipe", {})
    assert box.itemText(0) == "quick"
    below = Hint("below")
    form.add_below("steps", below)
    form.show()
    steps = form.editors["steps"].widget
    assert 0 <= below.y() - steps.geometry().bottom() < below.height() + 20


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in OTHER for name in kind.model_fields]
)
def test_every_knob_comes_back_as_it_was_set(qtbot: QtBot, kind: type[Knobs], name: str) -> None:
    form = KnobsForm(kind)
    qtbot.addWidget(form)
    assert form.value() == kind()
    config = kind.from_user({name: OTHER[kind][name]})
    assert config != kind()
    form.set_value(config)
    assert form.value() == config


@pytest.mark.parametrize("kind", OTHER)
def test_a_change_is_told(qtbot: QtBot, kind: type[Knobs]) -> None:
    form = KnobsForm(kind)
    qtbot.addWidget(form)
    with qtbot.waitSignal(form.changed):
        form.set_value(kind.from_user(OTHER[kind]))


@pytest.mark.parametrize(
    ("value", "text"), [(1e-4, "1e-4"), (1e-3, "1e-3"), (3.5e-6, "3.5e-6"), (0.5, "0.5"), (0, "0")]
)
def test_small_numbers_are_readable(qtbot: QtBot, value: float, text: str) -> None:
    box = ScientificSpinBox()
    qtbot.addWidget(box)
    box.setRange(0, 1)
    box.setValue(value)
    assert box.text() == text


def test_the_learning_rate_can_be_typed_and_stepped(qtbot: QtBot) -> None:
    form = KnobsForm(TrainingConfig)
    qtbot.addWidget(form)
    box = form.editors["learning_rate"].widget
    assert isinstance(box, QAbstractSpinBox)
    box.selectAll()
    qtbot.keyClicks(box, "2e-4")
    box.interpretText()
    assert form.value().learning_rate == 2e-4
    box.stepBy(1)
    assert form.value().learning_rate == 5e-4
    box.stepBy(-2)
    assert form.value().learning_rate == 1e-4


def test_a_tile_size_between_multiples_goes_to_the_nearest(qtbot: QtBot) -> None:
    form = KnobsForm(InferenceConfig)
    qtbot.addWidget(form)
    box = form.editors["tile_size"].widget
    assert isinstance(box, QAbstractSpinBox)
    box.selectAll()
    qtbot.keyClicks(box, "500")
    box.interpretText()
    assert form.value().tile_size == 496


def test_bounds_units_and_descriptions_come_from_the_field(qtbot: QtBot) -> None:
    form = KnobsForm(InferenceConfig)
    qtbot.addWidget(form)
    box: Any = form.editors["tile_size"].widget
    assert (box.minimum(), box.maximum(), box.suffix()) == (64, 4096, " px")
    assert "memory" in box.toolTip()
