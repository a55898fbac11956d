"""What is found before a run starts, on real files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from segdesk.config.training import TrainingConfig
from segdesk.core.annotation import Edit
from segdesk.core.classes import ClassMap
from segdesk.core.finding import Finding, FindingKind, Severity
from segdesk.core.sample import Split
from segdesk.io.store import ProjectStore
from segdesk.session.models import use_model
from segdesk.session.preflight import examine, is_blocked
from segdesk.session.projects import NewImage, add_images
from segdesk.session.session import Session
from segdesk.session.training import NewModel

CONFIG = TrainingConfig(crop_size=64)
SIZE = 96


@pytest.fixture
def files(tmp_path: Path, discs: Callable[..., Any]) -> Callable[..., NewImage]:
    """Write image and mask number ``seed`` and say which side they are on."""

    def write(
        seed: int,
        split: str = "train",
        name: str = "",
        paint: Callable[[Any], Any] = lambda image: image,
        draw: Callable[[Any], Any] = lambda mask: mask,
    ) -> NewImage:
        image, mask = discs(seed, SIZE)
        name = name or f"cell{seed}.png"
        path, where = tmp_path / name, tmp_path / f"{Path(name).stem}-mask.png"
        painted = paint(image)
        if isinstance(painted, np.ndarray):
            painted = Image.fromarray(painted)
        painted.save(path)
        Image.fromarray(draw(mask)).save(where)
        return NewImage(path, where, Split(split))

    return write


@pytest.fixture
def fill(
    session: Session, make_model: Callable[..., Path], files: Callable[..., NewImage]
) -> Callable[..., ProjectStore]:
    """Put images into a project whose model knows its classes; three more are held back."""

    def put(*images: NewImage, held: int = 5) -> ProjectStore:
        add_images(session, [*images, *(files(100 + n, "validation") for n in range(held))])
        make_model(session.store.folder / "models" / "tiny")
        use_model(session, "tiny")
        return session.store

    return put


def kinds(findings: list[Finding]) -> dict[FindingKind, Finding]:
    return {finding.kind: finding for finding in findings}


def test_where_all_is_well_nothing_is_said(
    fill: Callable[..., ProjectStore], files: Callable[..., NewImage]
) -> None:
    store = fill(files(0), files(1), files(2))
    seen: list[tuple[int, int]] = []
    assert examine(store, CONFIG, progress=lambda *at: seen.append(at)) == []
    assert (seen[0], seen[-1]) == ((0, 13), (13, 13))  # eight images, five compared
    assert examine(store, CONFIG) == []  # from the cache
    assert not (store.folder / "runs").exists()


def brighter(image: Any) -> Any:
    return np.clip(image * 1.2 + 10, 0, 255).astype(np.uint8)


def smaller(image: Any) -> Any:
    return np.asarray(Image.fromarray(image).resize((61, 61), Image.Resampling.BICUBIC))


def cut(image: Any) -> Any:
    return np.ascontiguousarray(image[:-3, 1:-2])


def turned(image: Any) -> Any:
    return np.ascontiguousarray(np.rot90(image)[:, ::-1])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("same.tif", lambda image: image),
        ("saved.jpg", lambda image: image),
        ("bright.png", brighter),
        ("small.png", smaller),
        ("turned.png", turned),
        ("cut.png", cut),
        ("all.jpg", lambda image: turned(cut(brighter(image)))),
        ("shifted.png", lambda image: np.roll(image, 2, axis=1)),
    ],
)
def test_a_copy_of_a_training_image_among_those_held_back_is_named(
    fill: Callable[..., ProjectStore], files: Callable[..., NewImage],
    name: str, change: Callable[[Any], Any],
) -> None:  # fmt: skip
    twin = files(1, "validation", name, paint=change)
    has_other_size = name in ("small.png", "cut.png", "all.jpg")
    twin = NewImage(twin.path, None if has_other_size else twin.mask, twin.split)
    store = fill(files(0), files(1), files(2), twin)
    held = store.sample(name)
    if has_other_size:
        labels = np.zeros(held.shape, np.uint8)
        labels[20:30, 20:30] = 1
        store.write_revision(held.id, labels, np.ones_like(labels), origin="test")
    (found,) = examine(store, CONFIG)
    assert (found.kind, found.severity) == (FindingKind.DUPLICATE, Severity.WARN)
    assert found.sample == held.id
    assert name in found.text
    assert "the same as cell1.png" in found.text


def test_an_image_the_model_has_learnt_from_before_is_no_check(
    fill: Callable[..., ProjectStore], files: Callable[..., NewImage]
) -> None:
    store = fill(files(0), files(1), files(2))
    card = store.folder / "models" / "tiny" / "card.json"
    known = store.sample("cell102.png").sha256
    card.write_text(
        card.read_text("utf-8").replace('"trained_ids": []', f'"trained_ids": ["{known}"]')
    )
    (found,) = examine(store, CONFIG)
    assert (found.kind, found.sample) == (FindingKind.LEARNT_BEFORE, "cell102")


def test_files_that_would_stop_the_run_are_named(
    fill: Callable[..., ProjectStore], files: Callable[..., NewImage], tmp_path: Path
) -> None:
    store = fill(*(files(n) for n in range(6)))
    assert examine(store, CONFIG) == []
    (tmp_path / "cell0.png").unlink()
    (tmp_path / "cell1.png").write_bytes(b"")
    Image.fromarray(np.full((SIZE, SIZE), 7, np.uint8)).save(tmp_path / "cell2.png")
    Image.fromarray(np.full((50, 60), 7, np.uint8)).save(tmp_path / "cell103.png")
    (store.folder / "labels" / "cell4" / "r0001.tif").write_bytes(b"II*\0nonsense")
    nan = np.full((SIZE, SIZE), np.nan, np.float32)
    (tmp_path / "cell5.png").unlink()
    tifffile.imwrite(tmp_path / "cell5.png", nan)
    found = {f.sample: f for f in examine(store, CONFIG) if f.severity is Severity.STOP}
    assert set(found) == {"cell0", "cell1", "cell2", "cell103", "cell4", "cell5"}
    says = {
        "cell0": "cell0.png", "cell1": "is empty", "cell2": "has changed since it was added",
        "cell103": "has changed its size", "cell4": "is damaged", "cell5": "cell5.png",
    }  # fmt: skip
    for sample, text in says.items():
        assert text in found[sample].text, found[sample].text
    assert is_blocked(list(found.values()))


def test_pixels_that_are_no_numbers_are_found(
    session: Session, fill: Callable[..., ProjectStore], files: Callable[..., NewImage],
    tmp_path: Path,
) -> None:  # fmt: skip
    image = np.random.default_rng(0).random((SIZE, SIZE)).astype(np.float32)
    tifffile.imwrite(tmp_path / "float.tif", image)
    given = files(9)
    store = fill(files(0), files(1), NewImage(tmp_path / "float.tif", given.mask, Split.TRAIN))
    assert examine(store, CONFIG) == []
    image[3, 4] = np.nan
    tifffile.imwrite(tmp_path / "float.tif", image)
    (found,) = examine(store, CONFIG)
    assert (found.kind, found.severity, found.sample) == (
        FindingKind.IMAGE, Severity.STOP, "float",
    )  # fmt: skip
    assert "contains 1 NaN pixel" in found.text


def test_slips_of_the_brush_and_empty_masks_are_found(
    fill: Callable[..., ProjectStore], files: Callable[..., NewImage]
) -> None:
    def slip(mask: Any) -> Any:
        mask[2, 3:5] = 1
        return mask

    store = fill(files(0), files(1, draw=slip), files(2, draw=lambda mask: mask * 0))
    found = kinds(examine(store, CONFIG))
    assert set(found) == {FindingKind.ISLANDS, FindingKind.EMPTY_MASK}
    assert found[FindingKind.ISLANDS].sample == "cell1"
    assert found[FindingKind.ISLANDS].place == (2, 3)
    assert (
        "a tiny piece of nucleus (2 pixels), which looks like a slip"
        in found[FindingKind.ISLANDS].text
    )
    assert found[FindingKind.EMPTY_MASK].sample == "cell2"


def test_where_all_objects_are_small_none_is_a_slip(
    fill: Callable[..., ProjectStore], files: Callable[..., NewImage]
) -> None:
    def dots(mask: Any) -> Any:
        mask[:] = 0
        mask[4::12, 4::12] = mask[5::12, 4::12] = 1
        return mask

    def no_discs(n: int) -> NewImage:
        return files(n, "validation", draw=dots)

    store = fill(*(files(n, draw=dots) for n in range(3)), *map(no_discs, range(5, 10)), held=0)
    assert examine(store, CONFIG) == []


def test_too_little_to_learn_from_is_said(
    fill: Callable[..., ProjectStore], files: Callable[..., NewImage]
) -> None:
    store = fill(NewImage(files(0).path, None, Split.TRAIN), held=2)
    found = kinds(examine(store, CONFIG))
    assert found[FindingKind.NOTHING_TO_LEARN].severity is Severity.STOP
    assert "The 2 labelled so far are held back" in found[FindingKind.NOTHING_TO_LEARN].text
    assert "Only 2 images are held back" in found[FindingKind.FEW_VALIDATION].text

    blank = np.zeros((SIZE, SIZE), np.uint8)
    store.write_revision("cell0", blank, blank, origin="test")
    after = np.stack([np.ones((4, 4), np.uint8), np.full((4, 4), 2, np.uint8)])
    store.append_edit("cell0", Edit((5, 5), (9, 9), after * 0, after, "paint", 0.0))
    found = kinds(examine(store, CONFIG))
    assert not is_blocked(list(found.values()))
    assert "cell0.png is the only image" in found[FindingKind.ONE_IMAGE].text
    assert "Only nucleus is painted" in found[FindingKind.ONE_CLASS].text
    untrained = kinds(examine(store, CONFIG, new=NewModel("unet")))
    assert untrained[FindingKind.ONE_CLASS].severity is Severity.STOP


def test_background_alone_gives_no_score(
    fill: Callable[..., ProjectStore], files: Callable[..., NewImage]
) -> None:
    store = fill(files(0), files(1), held=2)
    assert FindingKind.NO_VALIDATION not in kinds(examine(store, CONFIG))
    blank = np.zeros((SIZE, SIZE), np.uint8)
    for sample in store.samples():
        if sample.split is Split.VALIDATION:
            store.write_revision(sample.id, blank, np.ones_like(blank), origin="test")
    found = kinds(examine(store, CONFIG))[FindingKind.NO_VALIDATION]
    assert "nothing but background is labelled" in found.text


def test_a_model_of_other_classes_is_told_apart_by_name(
    tmp_path: Path, make_model: Callable[..., Path], files: Callable[..., NewImage]
) -> None:
    classes = ClassMap.from_names(["background", "nucleus", "dirt"])
    with ProjectStore.create(tmp_path / "q", classes) as store:
        add_images(Session(store), [files(0), files(1), files(2, "validation")])
        other = make_model(tmp_path / "other", classes=("background", "cell", "nucleus"))
        found = [f.text for f in examine(store, CONFIG, str(other))]
    assert any(text.startswith("other does not know dirt") for text in found)
    assert any(text.startswith("other knows cell, which this project does not") for text in found)
    assert any("No pixel of dirt is painted or accepted" in text for text in found)
    assert any("Only 1 image is held back" in text for text in found)


def test_a_model_that_cannot_be_used_is_the_only_finding(
    fill: Callable[..., ProjectStore], files: Callable[..., NewImage]
) -> None:
    store = fill(files(0), files(1))
    (found,) = examine(store, CONFIG, "tinny")
    assert (found.kind, found.severity) == (FindingKind.MODEL, Severity.STOP)
    assert "did you mean 'tiny'?" in found.text
    weights = store.folder / "models" / "tiny" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    assert "are damaged" in kinds(examine(store, CONFIG))[FindingKind.MODEL].text


def test_a_disk_without_room_for_checkpoints_is_found(
    tmpfs: Callable[..., Path], fill: Callable[..., ProjectStore], files: Callable[..., NewImage]
) -> None:
    here = fill(files(0), files(1), files(2))
    disk = tmpfs("size=4m")
    there = disk / "p.segdesk"
    shutil.copytree(here.folder, there)
    weights = (there / "models" / "tiny" / "weights.safetensors").stat().st_size
    room = shutil.disk_usage(disk).free - 3 * weights
    (disk / "filler").write_bytes(b"x" * room)
    with ProjectStore.open(there) as store:
        before = sorted(there.rglob("*"))
        found = kinds(examine(store, CONFIG))[FindingKind.DISK]
        assert sorted(there.rglob("*")) == before
        assert found.severity is Severity.STOP
        assert "is full; free some space" in found.text
        (disk / "filler").unlink()
        assert examine(store, CONFIG) == []


def test_sizes_that_differ_are_mentioned(
    fill: Callable[..., ProjectStore], files: Callable[..., NewImage], tmp_path: Path
) -> None:
    def huge(array: Any) -> Any:
        return np.kron(array, np.ones((5, 5), np.uint8))

    store = fill(files(0), files(1, paint=huge, draw=huge))
    found = kinds(examine(store, TrainingConfig(crop_size=128)))
    assert "cell0.png is 96 x 96 and cell1.png 480 x 480" in found[FindingKind.SIZES].text
    assert "cell0.png is smaller than a crop of 128" in found[FindingKind.SMALL].text


def test_images_of_one_kind_are_no_copies(
    fill: Callable[..., ProjectStore], files: Callable[..., NewImage]
) -> None:
    """All in the same uneven light, which is most of what small versions of them show."""
    rows, columns = np.mgrid[:SIZE, :SIZE] / SIZE

    def lit(image: Any) -> Any:
        return (image * 0.2 + 190 * rows * columns).astype(np.uint8)

    held = [files(200 + n, "validation", paint=lit) for n in range(5)]
    store = fill(*(files(n, paint=lit) for n in range(6)), *held, held=0)
    assert examine(store, CONFIG) == []
