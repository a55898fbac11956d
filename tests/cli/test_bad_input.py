"""Bad input: one clear sentence, exit code 2, and nothing changed on disk."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from segdesk.io.store import ProjectStore
from segdesk.session.models import list_models

Cli = Callable[..., Any]
OnDisk = Callable[[Path], dict[str, str]]


@pytest.fixture
def refused(segdesk: Cli, on_disk: OnDisk, tmp_path: Path) -> Callable[..., None]:
    """Run a command that must be refused with a sentence like ``says``."""

    def check(says: str, *arguments: object) -> None:
        before = on_disk(tmp_path)
        answer = segdesk(*arguments)
        assert answer.code == 2, answer.err
        assert re.search(says, answer.err), answer.err
        progress = re.compile(r"[A-Z][\w-]+: \d+ of \d+")
        sentences = [s for s in answer.err.splitlines() if not progress.match(s)]
        assert len(sentences) == 1, answer.err
        assert answer.out == ""
        assert on_disk(tmp_path) == before

    return check


def bad_image(kind: str, folder: Path) -> tuple[Path, str]:
    folder.mkdir(exist_ok=True)
    path = folder / f"{kind}.tif"
    data = np.random.default_rng(0).random((64, 64), np.float32)
    if kind == "missing":
        return path, "missing.tif"
    if kind == "empty":
        path.write_bytes(b"")
        return path, r"empty.tif is empty \(0 bytes\)"
    if kind in ("nan", "infinite"):
        data[3, 4] = np.nan if kind == "nan" else np.inf
    tifffile.imwrite(path, data)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
        return path, "truncated.tif is damaged or cut short"
    return path, f"{kind}.tif contains 1 {'NaN' if kind == 'nan' else 'infinite'} pixel"


KINDS = ["missing", "empty", "truncated", "nan", "infinite"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_cannot_be_added(
    project: Path, refused: Callable[..., None], tmp_path: Path, kind: str
) -> None:
    path, says = bad_image(kind, tmp_path / "bad")
    refused(says, "add", project, path)
    refused(says, "add", project, tmp_path / "images", path, "--copy")


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_cannot_be_predicted(
    project: Path, refused: Callable[..., None], tmp_path: Path, kind: str
) -> None:
    path, says = bad_image(kind, tmp_path / "bad")
    refused(says, "predict", path, "--out", tmp_path / "out", "--model", project / "models/tiny")


def write_mask(folder: Path, mask: np.ndarray) -> Path:
    masks = folder / "odd"
    masks.mkdir()
    Image.fromarray(mask).save(masks / "new.png")
    new = folder / "new.png"
    Image.fromarray(np.random.default_rng(9).integers(0, 99, (64, 64), np.uint8)).save(new)
    return new


def test_a_mask_of_another_size(
    project: Path, refused: Callable[..., None], tmp_path: Path
) -> None:
    new = write_mask(tmp_path, np.zeros((64, 60), np.uint8))
    refused("60 x 64 pixels but its image is 64 x 64", "add", project, new,
            "--masks", tmp_path / "odd")  # fmt: skip
    model = project / "models" / "tiny"
    refused("60 x 64 pixels but its image is 64 x 64", "evaluate", "--model", model,
            "--images", new.parent, "--masks", tmp_path / "odd")  # fmt: skip


def test_a_label_outside_the_classes(
    project: Path, refused: Callable[..., None], tmp_path: Path
) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:9], mask[9:20] = 7, 1
    new = write_mask(tmp_path, mask)
    refused("holds the value 7, but the classes are 0 to 1", "add", project, new,
            "--masks", tmp_path / "odd")  # fmt: skip


COMMANDS: list[tuple[str, ...]] = [
    ("status",),
    ("predict",),
    ("train",),
    ("evaluate",),
    ("review",),
    ("app",),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_project_of_a_newer_version(
    project: Path, refused: Callable[..., None], command: tuple[str, ...]
) -> None:
    with sqlite3.connect(project / "project.db") as database:
        database.execute("PRAGMA user_version = 999")
    database.close()
    refused(r"was made by a newer SegDesk \(format 999.*update SegDesk", *command, project)


HOLD = """
import sys
from pathlib import Path
from segdesk.io.store import ProjectStore
from segdesk.session.models import list_models
with ProjectStore.open(Path(sys.argv[1])):
    print("open", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_open(project: Path) -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(project)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        try:
            yield other.pid
        finally:
            assert other.stdin is not None
            other.stdin.close()


def test_a_second_process_on_the_same_project(
    project: Path, refused: Callable[..., None], segdesk: Cli, tmp_path: Path
) -> None:
    with held_open(project) as pid:
        says = rf"p.segdesk is open in another SegDesk window \(process {pid}\); close it there"
        for command in (["predict"], ["train"], ["app"], ["add", tmp_path / "images"]):
            refused(says, command[0], project, *command[1:])
        assert segdesk("status", project, "--json").json["images"] == 5, "looking is fine"
    assert segdesk("add", project, tmp_path / "images").code == 0


def test_a_read_only_disk(
    project: Path, refused: Callable[..., None], segdesk: Cli, tmpfs: Callable[..., Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    disk = tmpfs("size=4m")
    there = disk / "p.segdesk"
    shutil.copytree(project, there)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    model = project / "models" / "tiny"
    for command in (
        ["predict", there], ["train", there], ["app", there], ["add", there, tmp_path / "images"],
        ["new", disk / "q", "--classes", "a,b"],
        ["predict", tmp_path / "images", "--out", disk / "o", "--model", model],
    ):  # fmt: skip
        refused("cannot be written to because its disk is read-only", *command)
    assert segdesk("status", there, "--json").json["images"] == 5
    assert segdesk("evaluate", there, "--json").json["n"] == 1


def test_a_full_disk(
    project: Path, segdesk: Cli, tmpfs: Callable[..., Path], tmp_path: Path
) -> None:
    disk = tmpfs("size=3m")
    there = disk / "p.segdesk"
    shutil.copytree(project, there)
    (disk / "filler").write_bytes(b"x" * (shutil.disk_usage(disk).free - 30_000))

    def listing() -> set[Path]:
        return {p for p in disk.rglob("*") if not p.name.startswith((".lock", "project.db-"))}

    model = project / "models" / "tiny"
    before = listing()
    big = tmp_path / "big.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 400), np.uint8)).save(big)
    for command in (
        ["predict", there, "--set", "device=cpu"],
        ["add", there, big, "--copy"],
        ["new", disk / "q", "--classes", "a,b"],
        ["predict", big, "--out", disk / "o", "--model", model],
    ):
        answer = segdesk(*command)
        assert answer.code == 2, answer.err
        assert "is full; free some space" in answer.err.splitlines()[-1]
        assert listing() == before
    (disk / "filler").unlink()
    assert segdesk("predict", there).code == 0


def test_a_run_on_a_full_disk_ends_in_a_sentence(
    project: Path, segdesk: Cli, tmpfs: Callable[..., Path]
) -> None:
    disk = tmpfs("size=3m")
    there = disk / "p.segdesk"
    shutil.copytree(project, there)
    (disk / "filler").write_bytes(b"x" * (shutil.disk_usage(disk).free - 100_000))
    tiny = ("--set", "steps=1", "--set", "crop_size=32", "--set", "batch_size=1")
    answer = segdesk("train", there, *tiny)
    assert answer.code == 2, answer.err
    assert "is full; free some space" in answer.err.splitlines()[-1]
    (disk / "filler").unlink()
    with ProjectStore.open(there) as store:
        assert [entry.name for entry in list_models(store)] == ["nuclei-unet", "tiny"]
    assert segdesk("train", there, *tiny).code == 0


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_weights_that_are_a_pickle(
    project: Path, refused: Callable[..., None], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    evil = make_model(project / "models" / "evil")
    bomb = pickle.dumps(Bomb(tmp_path / "boom"))
    (evil / "weights.safetensors").write_bytes(bomb)
    loose = tmp_path / "net.pt"
    loose.write_bytes(bomb)
    says = "is a pickle, which can run any program when it is opened"
    images = tmp_path / "images"
    for model in ("evil", evil, loose):
        refused(says, "predict", project, "--model", model)
        refused(says, "train", project, "--model", model)
        refused(says, "evaluate", project, "--model", model)
    refused(says, "predict", images, "--out", tmp_path / "o", "--model", loose)
    assert not (tmp_path / "boom").exists()


def test_damaged_weights(
    project: Path, refused: Callable[..., None], segdesk: Cli, tmp_path: Path
) -> None:
    file = project / "models" / "tiny" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    refused("weights of 'tiny' .* are damaged", "predict", tmp_path / "images" / "cell0.png",
            "--out", tmp_path / "deep" / "out", "--model", file.parent)  # fmt: skip
    assert segdesk("predict", project).code == 2
    assert segdesk("train", project).code == 2


def test_a_model_with_other_channels_than_the_image(
    project: Path, refused: Callable[..., None], segdesk: Cli, tmp_path: Path
) -> None:
    colour = tmp_path / "colour.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(colour)
    says = r"colour.png has 3 channels, but the model 'tiny' takes 1; say which it gets"
    model = project / "models" / "tiny"
    refused(says, "predict", colour, "--out", tmp_path / "out", "--model", model)
    assert segdesk("add", project, colour).code == 0
    refused(says, "predict", project)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["predcit"], "no project or command 'predcit'; did you mean 'segdesk predict'"),
        (["xyzzy"], "see segdesk --help"),
        (["status"], "Missing argument"),
        (["status", "nowhere.segdesk"], "nowhere.segdesk does not exist"),
        (["new", "q"], "Missing option"),
        (["new", "q", "--classes", "only"], "at least two classes"),
        (["models", "show", "nuclei-nuet"], "did you mean 'nuclei-unet'"),
        (["evaluate"], "Name a project, or give --images FOLDER and --masks FOLDER"),
        (["status", ".", "--jsno"], "No such option"),
        (["predict", "."], "--out FOLDER"),
    ],
)
def test_a_command_that_is_wrong(
    refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    arguments: list[str], says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    refused(says, *arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["predict", "--set", "tile_size=100"], r"Tile size \(tile_size\) cannot be '100'"),
        (["predict", "--set", "tile"], "write it as name=value"),
        (["predict", "--set", "tile_size=64", "--set", "overlap=64"], "choose at most 32"),
        (["predict", "--model", "tinny"], "did you mean 'tiny'"),
        (["train", "--set", "stepz=3"], "There is no setting called 'stepz'"),
        (["train", "--recipe", "everything"], "cannot be 'everything'"),
        (["evaluate", "--model", "tinny"], "did you mean 'tiny'"),
        (["evaluate", "--device", "tpu"], "cannot be 'tpu'"),
        (["add"], "Missing argument"),
    ],
)
def test_a_setting_that_is_wrong(
    project: Path, refused: Callable[..., None], arguments: list[str], says: str
) -> None:
    refused(says, arguments[0], project, *arguments[1:])


def test_two_images_that_would_get_the_same_results(
    project: Path, refused: Callable[..., None], tmp_path: Path
) -> None:
    twin = tmp_path / "cell0.png"
    shutil.copy(tmp_path / "images" / "cell0.png", twin)
    refused("would get the same result files", "predict", tmp_path / "images", twin,
            "--out", tmp_path / "out", "--model", project / "models" / "tiny")  # fmt: skip


def test_a_card_without_weights(project: Path, refused: Callable[..., None]) -> None:
    (project / "models" / "tiny" / "weights.safetensors").unlink()
    refused("has no weights.safetensors", "predict", project, "--model", "tiny")


def test_a_project_can_still_be_opened_after_all_this(project: Path) -> None:
    with ProjectStore.open(project) as store:
        assert len(store.samples()) == 5
    assert json.loads((project / "models" / "tiny" / "card.json").read_text("utf-8"))
