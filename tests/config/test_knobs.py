"""Every knob, as form, command line and run file need it."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from segdesk.config.app import AppSettings
from segdesk.config.inference import InferenceConfig
from segdesk.config.knobs import Knobs, extra, parse_assignments
from segdesk.config.model import NewModelConfig
from segdesk.config.refinement import CrfConfig
from segdesk.config.training import TrainingConfig
from segdesk.core.errors import InputError

CONFIGS: list[type[Knobs]] = [InferenceConfig, CrfConfig, TrainingConfig]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_knob_can_be_shown_to_a_person(config: type[Knobs]) -> None:
    for name, knob in config.model_fields.items():
        assert knob.title, name
        assert knob.description, name
        assert knob.description.endswith("."), name
        assert set(extra(knob)) <= {"unit", "log", "basic", "choices", "file", "empty"}, name
        kind = knob.annotation
        if "choices" in extra(knob):
            assert isinstance(kind, type)
            assert issubclass(kind, Enum)
            assert set(extra(knob)["choices"]) == {str(value) for value in kind}
    assert any(extra(knob).get("basic") for knob in config.model_fields.values())


@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_written_is_read_back(config: type[Knobs]) -> None:
    made = config()
    assert config.model_validate_json(made.model_dump_json()) == made
    typed = {k: str(v) for k, v in made.model_dump(mode="json").items()}
    assert config.from_user(typed) == made


@pytest.mark.parametrize(
    ("config", "values", "says"),
    [
        (InferenceConfig, {"tile_sise": 64}, "no setting called 'tile_sise'; .*tile_size"),
        (
            InferenceConfig,
            {"tile_size": "100"},
            r"Tile size \(tile_size\) cannot be '100': .* 16; the nearest is 96\.",
        ),
        (InferenceConfig, {"device": "gpu"}, r"Device \(device\) cannot be 'gpu': input .*cpu"),
        (
            InferenceConfig,
            {"device": "CUDA"},
            r"cannot be 'CUDA': did you mean 'cuda'\? Input .* 'mps'\.$",
        ),
        (
            TrainingConfig,
            {"loss": "dise"},
            r"Loss \(loss\) cannot be 'dise': did you mean 'dice'\? Input .*'focal'",
        ),
        (TrainingConfig, {"loss": 3}, r"Loss \(loss\) cannot be 3: input should be .*'focal'"),
        (NewModelConfig, {"variant": "papper"}, "'papper': did you mean 'paper'.*'small'"),
        (NewModelConfig, {"variant": "big"}, "'big': input should be 'small' or 'paper'"),
        (NewModelConfig, {"head": "c"}, "'c': did you mean 'C'"),
        (NewModelConfig, {"activation": "leaky-relu"}, "did you mean 'leaky_relu'.*'gelu'"),
        (TrainingConfig, {"learning_rate": "0"}, r"Learning rate .* cannot be '0'"),
        (TrainingConfig, {"learning_rate": "nan"}, r"Learning rate .* cannot be 'nan'"),
        (TrainingConfig, {"steps": "many"}, r"Steps .* cannot be 'many'"),
        (TrainingConfig, {"recipe": "some"}, r"What learns .* cannot be 'some'.*decoder"),
    ],
)
def test_a_wrong_value_is_explained_in_one_line(
    config: type[Knobs], values: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        config.from_user(values)
    assert "\n" not in caught.value.message


def test_values_go_on_top_of_a_base() -> None:
    base = TrainingConfig(steps=7, seed=3)
    assert TrainingConfig.from_user({"steps": "9"}, base=base) == TrainingConfig(steps=9, seed=3)


def test_assignments() -> None:
    assert parse_assignments(["a=1", " b = x=y "]) == {"a": "1", "b": "x=y"}
    for wrong in ("a", "=1", ""):
        with pytest.raises(InputError, match="write it as name=value"):
            parse_assignments([wrong])


def test_ten_recent_projects_are_kept_newest_first() -> None:
    settings = AppSettings()
    for number in (*range(12), 5):
        settings = settings.with_recent(Path(f"/p/{number}.segdesk"))
    assert [int(p.stem) for p in settings.recent] == [5, 11, 10, 9, 8, 7, 6, 4, 3, 2]
    assert AppSettings.parse(settings.model_dump_json()) == settings


@pytest.mark.parametrize("text", ["", "{", "[]", '{"recent": 3}', '{"from the future": 1}'])
def test_damaged_settings_do_not_keep_the_app_from_starting(text: str) -> None:
    assert AppSettings.parse(text) == AppSettings()
