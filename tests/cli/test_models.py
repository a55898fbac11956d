"""``segdesk models list`` and ``show``: what one reads before choosing."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from segdesk.nn.registry import architectures

Cli = Callable[..., Any]

#: An architecture in a package of someone else's.
SLIM = """
from torch import nn
from segdesk.nn.encoders import TimmEncoder
from segdesk.nn.heads import Head, HeadConfig
from segdesk.nn.segmenter import Segmenter
from segdesk.nn.spec import ModelSpec

class First(nn.Module):
    def forward(self, features):
        return features[0]

class Slim(Segmenter):
    def __init__(self, inputs, classes, encoder, levels, thin, depth, head, activation):
        body = TimmEncoder(encoder, inputs, levels, channels=[thin, 128, 256, 512])
        super().__init__(body, First(), Head(HeadConfig.of(classes, head, activation), thin))

SPEC = ModelSpec(
    name="slim", title="Slim", year=1999, reference="Nobody, Nowhere 1999", build=Slim,
    stride=32, min_size=40, needs_labels=False, license="MIT",
    options={"encoder": "resnet18", "levels": [1, 4], "thin": 64, "depth": None, "head": "A",
             "activation": "none"},
    small={"thin": 16, "depth": 2},
    deviations=("It is not in any paper, which is the first thing that is different about it.",
                "It is slim."),
)
"""


@pytest.fixture
def slim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install it, as pip would lay it out."""
    site = tmp_path / "site"
    info = site / "slim_net-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "slim_net.py").write_text(SLIM, "utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slim-net\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[segdesk.models]\nslim = slim_net\n")
    monkeypatch.syspath_prepend(str(site))
    architectures.cache_clear()
    yield
    architectures.cache_clear()
    sys.modules.pop("slim_net", None)


def find(listed: Any, name: str) -> dict[str, Any]:
    [found] = [a for a in listed["architectures"] if a["name"] == name]
    assert isinstance(found, dict)
    return found


def lines_of(text: str) -> dict[str, str]:
    """Return what stands behind the first colon of each line."""
    pairs = (line.partition(": ") for line in text.splitlines())
    return {key: value for key, _, value in pairs}


@pytest.mark.slow
def test_a_program_can_compare_architectures(segdesk: Cli) -> None:
    unet = find(segdesk("models", "list", "--json").json, "unet")
    assert unet["title"] == "U-Net, padded"
    assert (unet["year"], unet["reference"]) == (2015, "Ronneberger et al., MICCAI 2015")
    # The paper's head A, or what a new model gets: head C, which is 248 and 680 larger.
    assert unet["parameters"] == {
        "small": 1_942_594 + 248, "paper": 31_037_698 + 680, "published": 31_037_698,
    }  # fmt: skip
    assert unet["multiply_adds_per_megapixel"]["published"] == 735_040e6
    memory = unet["activation_bytes_per_megapixel"]
    assert memory["paper"] > memory["published"] > 3 * memory["small"] > 0
    head = {"small": "C", "paper": "C", "published": "A"}
    assert unet["computed_for"] == {"channels": 3, "classes": 2, "side": 512, "head": head}
    assert (unet["stride"], unet["min_size"]) == (16, 1)
    published = {"width": 64, "dropout": 0.5, "head": "A", "activation": "none"}
    assert unet["options"] == {
        "small": published | {"width": 16, "dropout": 0.1, "head": "C"},
        "paper": published | {"head": "C"},
        "published": published,
    }
    assert unet["classes"] == "any"
    assert unet["heads"] == ["A", "B", "C", "D"]
    assert unet["activations"] == ["none", "tanh", "relu", "leaky_relu", "selu", "gelu"]
    assert unet["needs_labels"] is True
    assert (unet["is_exportable"], unet["without_gradient"]) == (True, [])
    assert unet["license"] == "BSD-3-Clause"
    assert unet["weights_available"] == ["nuclei-unet"]
    assert any("batch norm" in sentence.lower() for sentence in unet["deviations"])


@pytest.mark.slow
def test_a_project_adds_its_models_to_the_weights_there_are(project: Path, segdesk: Cli) -> None:
    listed = segdesk("models", "list", "--project", project, "--json").json
    assert find(listed, "unet")["weights_available"] == ["nuclei-unet", "tiny"]
    shown = segdesk("models", "show", "unet", "--project", project)
    assert lines_of(shown.out)["weights available"] == "nuclei-unet, tiny"


@pytest.mark.slow
def test_people_read_a_table(project: Path, slim: None, segdesk: Cli) -> None:
    listed = segdesk("models", "list", "--project", project)
    assert listed.code == 0, listed.err
    rows = [re.split(r"\s{2,}", line.strip()) for line in listed.out.splitlines()]
    assert rows[0] == ["trained model", "architecture", "score"]
    assert ["nuclei-unet", "unet", "dice 0.921, images 22"] in rows
    assert ["* tiny", "unet"] in rows
    assert ["unet", "2015", "1.9 M", "31.0 M", "46.4", "735.0", "1.14", "4.51"] in rows
    names = [row[0] for row in rows if row[1:2] and re.fullmatch(r"(19|20)\d\d", row[1])]
    assert names == list(architectures())
    assert names[0] == "slim", "the oldest comes first"
    assert max(map(len, listed.out.splitlines())) <= 80


def test_an_architecture_is_shown_in_plain_text(segdesk: Cli) -> None:
    shown = segdesk("models", "show", "unet")
    assert shown.code == 0, shown.err
    said = lines_of(shown.out)
    assert said["title"] == "U-Net, padded"
    assert said["reference"] == "Ronneberger et al., MICCAI 2015"
    assert said["year"] == "2015"
    assert said["licence"] == "BSD-3-Clause"
    assert said["learns"] == "from labelled images"
    assert said["stride"].startswith("16 pixels")
    assert said["min size"] == "16 pixels"
    assert said["heads"] == "A, B, C, D"
    assert said["activations"] == "none, tanh, relu, leaky_relu, selu, gelu"
    rows = [re.split(r"\s{2,}", line) for line in shown.out.splitlines()]
    assert ["", "small", "paper", "as published"] in rows
    assert ["parameters", "1,942,842", "31,038,378", "31,037,698"] in rows
    assert ["option head", "C", "C", "A"] in rows
    assert ["option width", "16", "64", "64"] in rows
    assert ["option dropout", "0.1", "0.5", "0.5"] in rows
    assert "- Batch norm behind every 3x3 convolution (the paper has none)." in shown.out
    assert "paper builds the network as published, but trains it with SegDesk's own" in shown.out
    assert not set('{}[]"') & set(shown.out)


def test_parameters_that_never_learn_are_named(segdesk: Cli) -> None:
    said = lines_of(segdesk("models", "show", "swin-upernet").out)
    assert said["without gradient"] == "encoder.body.norm.*"
    assert said["torch.export"] == "possible"


def test_the_figures_are_those_of_the_model_a_user_gets(
    tmp_path: Path, segdesk: Cli, disc_files: Callable[..., list[Path]]
) -> None:
    disc_files(2)
    folder = tmp_path / "new.segdesk"
    segdesk("new", folder, "--classes", "background,nucleus")
    segdesk("add", folder, tmp_path / "images", "--masks", tmp_path / "masks")
    short = ["--set", "steps=1", "--set", "crop_size=64", "--set", "augment=none"]
    trained = segdesk("train", folder, "--new", "segnet", *short, "--json")
    assert trained.code == 0, trained.err
    model = segdesk("models", "show", trained.lines[-1]["model"], "--project", folder, "--json")
    segnet = segdesk("models", "show", "segnet", "--json").json
    # These images are grey: two channels of 16 filters of 3 x 3 less than it is computed for.
    fewer = (3 - model.json["channels"]) * 16 * 9
    assert model.json["parameters"] == segnet["parameters"]["small"] - fewer
    assert model.json["options"] == segnet["options"]["small"]


def test_an_architecture_of_someone_elses(slim: None, segdesk: Cli) -> None:
    shown = segdesk("models", "show", "slim")
    assert shown.code == 0, shown.err
    said = lines_of(shown.out)
    assert said["learns"] == "without labels"
    assert said["licence"] == "MIT"
    assert said["min size"] == "64 pixels", "the next multiple of the stride"
    assert said["weights available"] == "encoder: timm resnet18"
    rows = [re.split(r"\s{2,}", line) for line in shown.out.splitlines()]
    assert ["option levels", "1,4", "1,4", "1,4"] in rows
    assert ["option depth", "2", "none", "none"] in rows
    report = segdesk("models", "show", "slim", "--json").json
    assert report["weights_available"] == ["encoder: timm resnet18"]
    assert report["needs_labels"] is False
    # torchvision's ResNet-18 without its classifier, and two maps of 64 features.
    assert report["parameters"]["published"] == 11_689_512 - 513_000 + 2 * 64 + 2


def test_a_terminal_breaks_lines_between_words(
    slim: None, segdesk: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = "- It is not in any paper, which is the first thing that is different about it."
    assert sentence in segdesk("models", "show", "slim").out
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    lines = segdesk("models", "show", "slim").out.splitlines()
    at = lines.index("- It is not in any paper, which is the first thing that is")
    assert lines[at + 1] == "  different about it."


def test_a_trained_model_is_shown_in_plain_text(segdesk: Cli) -> None:
    shown = segdesk("models", "show", "nuclei-unet")
    said = lines_of(shown.out)
    assert said["name"] == "nuclei-unet"
    assert said["architecture"] == "unet"
    assert said["classes"] == "background, nucleus"
    assert said["score"] == "dice 0.921, images 22"
    assert said["options"] == "width 16, dropout 0.1, head C, activation none"
    assert said["trained on"] == "78 images, by their hash"
    assert said["training data"].endswith("(CC0-1.0, 78 images)")
    assert said["stride"] == "16 pixels"
    assert "base model" not in said, "nothing is said of what is not known"
    assert "- Batch norm behind every 3x3 convolution (the paper has none)." in shown.out
    assert not set("{}[]'\"") & set(shown.out)


@pytest.mark.slow
def test_a_program_is_told_what_it_is_shown(segdesk: Cli) -> None:
    model = segdesk("models", "show", "nuclei-unet", "--json").json
    assert (model["kind"], model["architecture"]) == ("model", "unet")
    assert model["score"]["dice"] == pytest.approx(0.9214)
    assert len(model["trained_ids"]) == 78
    architecture = segdesk("models", "show", "unet", "--json").json
    assert architecture["kind"] == "architecture"
    assert architecture == find(segdesk("models", "list", "--json").json, "unet")


def test_a_model_hides_an_architecture_of_its_name_and_that_hides_a_folder(
    project: Path, segdesk: Cli, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    make_model(project / "models" / "unet", classes=("background", "other"))
    own = segdesk("models", "show", "unet", "--project", project)
    assert lines_of(own.out)["classes"] == "background, other"
    monkeypatch.chdir(project / "models")
    assert lines_of(segdesk("models", "show", "unet").out)["classes"] == "any"
    assert lines_of(segdesk("models", "show", "./unet").out)["classes"] == "background, other"
    assert lines_of(segdesk("models", "show", "tiny").out)["name"] == "tiny"


def test_a_damaged_model_of_a_project_is_explained(project: Path, segdesk: Cli) -> None:
    (project / "models" / "tiny" / "card.json").write_text("{", "utf-8")
    shown = segdesk("models", "show", "tiny", "--project", project)
    assert shown.code == 2
    assert "is not a model card this SegDesk can read" in shown.err


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("unte", "did you mean 'unet'?"),
        ("nuclei-nuet", "did you mean 'nuclei-unet'?"),
        ("tinny", "did you mean 'tiny'?"),
        ("xyzzy", "there are: nuclei-unet, tiny, "),
    ],
)
def test_an_unknown_name_suggests_models_and_architectures(
    project: Path, segdesk: Cli, name: str, says: str
) -> None:
    shown = segdesk("models", "show", name, "--project", project)
    assert shown.code == 2
    assert shown.out == ""
    assert shown.err.startswith(f"There is no model or architecture called {name!r}; {says}")
    assert len(shown.err.splitlines()) == 1
    if name == "xyzzy":
        assert all(known in shown.err for known in architectures())
