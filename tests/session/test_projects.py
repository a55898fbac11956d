"""Filling a project with images: all or nothing, and the split once and for all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from segdesk.core.annotation import Supervision
from segdesk.core.classes import ClassMap
from segdesk.core.errors import InputError
from segdesk.core.sample import Split, Status
from segdesk.io.store import ProjectStore
from segdesk.session.projects import NewImage, add_images, find_images, match_masks
from segdesk.session.sample_project import sample_folder
from segdesk.session.session import Session

Discs = Callable[..., list[Path]]
OnDisk = Callable[[Path], dict[str, str]]


def splits(session: Session) -> dict[str, Split]:
    return {s.name: s.split for s in session.store.samples()}


def test_masks_become_accepted_labels(session: Session, disc_files: Discs, tmp_path: Path) -> None:
    paths = disc_files(4)
    (tmp_path / "masks" / "cell3.png").unlink()
    added = add_images(session, match_masks(paths, tmp_path / "masks"))
    assert [s.status for s in added.samples] == [Status.ACCEPTED] * 3 + [Status.NEW]
    assert added.samples == session.store.samples()
    annotation = session.store.annotation(added.samples[0].id)
    assert annotation is not None
    mask = np.array(Image.open(tmp_path / "masks" / "cell0.png")) // 255
    np.testing.assert_array_equal(annotation.labels, mask)
    assert (annotation.supervision == Supervision.ACCEPTED).all()
    assert session.store.annotation(added.samples[3].id) is None
    assert added.notes[0].startswith("cell0.png: ")


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("bad", ["image", "mask"])
def test_one_bad_file_and_nothing_is_added(
    session: Session, disc_files: Discs, tmp_path: Path, on_disk: OnDisk, copy: bool, bad: str
) -> None:
    paths = disc_files(3)
    pairs = match_masks(paths, tmp_path / "masks")
    file = paths[2] if bad == "image" else tmp_path / "masks" / "cell2.png"
    file.write_bytes(file.read_bytes()[:200])
    before = on_disk(session.store.folder)
    with pytest.raises(InputError, match=r"cell2.png is damaged or cut short"):
        add_images(session, pairs, copy=copy)
    assert session.store.samples() == []
    assert on_disk(session.store.folder) == before
    added = add_images(session, pairs, copy=copy, skip_bad=True)
    assert len(added.samples) == 2
    assert len(added.refused) == 1


@pytest.mark.parametrize("copy", [True, False])
def test_a_disk_that_fills_up_leaves_the_project_as_it_was(
    tmp_path: Path, tmpfs: Callable[..., Path], two_classes: ClassMap, copy: bool
) -> None:
    disk = tmpfs("size=500k")
    random = np.random.default_rng(0)
    pairs = []
    for number in range(12):
        path, mask = tmp_path / f"{number}.png", tmp_path / f"m{number}.png"
        Image.fromarray(random.integers(0, 2, (600, 600), np.uint8)).save(path)
        Image.fromarray(random.integers(0, 2, (600, 600), np.uint8)).save(mask)
        pairs.append(NewImage(path, mask))
    with ProjectStore.create(disk / "p", two_classes) as store:
        session = Session(store)

        def files() -> set[str]:
            return {str(p) for p in store.folder.rglob("*")}

        before = files()
        with pytest.raises(InputError, match="is full; free some space"):
            add_images(session, pairs, copy=copy)
        assert store.samples() == []
        assert files() == before
        assert len(add_images(session, pairs[:1], copy=copy).samples) == 1


def test_the_same_file_is_added_once(session: Session, disc_files: Discs, tmp_path: Path) -> None:
    paths = disc_files(2)
    twin = tmp_path / "twin.png"
    twin.write_bytes(paths[0].read_bytes())
    added = add_images(session, [NewImage(p) for p in (*paths, twin)])
    assert [s.name for s in added.samples] == ["cell0.png", "cell1.png"]
    assert "twin.png is the same image as cell0.png" in added.notes[0]
    again = add_images(session, [NewImage(twin)])
    assert again.samples == []
    assert len(session.store.samples()) == 2


def test_images_of_one_name_from_two_folders_are_two(session: Session, disc_files: Discs) -> None:
    paths = disc_files(2)
    other = paths[0].parent.parent / "elsewhere"
    other.mkdir()
    (other / "cell0.png").write_bytes(paths[1].read_bytes())
    added = add_images(session, [NewImage(paths[0]), NewImage(other / "cell0.png")], copy=True)
    assert len({s.id for s in added.samples}) == 2
    assert [s.path.read_bytes() for s in added.samples] == [p.read_bytes() for p in paths]


def test_a_fifth_is_held_back_and_never_moves(session: Session, disc_files: Discs) -> None:
    paths = disc_files(20)
    add_images(session, [NewImage(p) for p in paths[:10]])
    first = splits(session)
    assert list(first.values()).count(Split.VALIDATION) == 2
    for start in (10, 13, 19):
        stop = {10: 13, 13: 19, 19: 20}[start]
        add_images(session, [NewImage(p) for p in paths[start:stop]])
        assert {k: v for k, v in splits(session).items() if k in first} == first
        first = splits(session)
    assert list(first.values()).count(Split.VALIDATION) == 4


def test_the_split_depends_on_content_alone(
    session: Session, disc_files: Discs, tmp_path: Path, two_classes: ClassMap
) -> None:
    paths = disc_files(10)
    add_images(session, [NewImage(p) for p in paths])
    with ProjectStore.create(tmp_path / "other", two_classes) as store:
        renamed = []
        for number, path in enumerate(reversed(paths)):
            renamed.append(tmp_path / f"x{number}.png")
            renamed[-1].write_bytes(path.read_bytes())
        add_images(Session(store), [NewImage(p) for p in renamed])
        other = {s.sha256: s.split for s in store.samples()}
    assert {s.sha256: s.split for s in session.store.samples()} == other


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(groups=st.lists(st.integers(0, 4), min_size=1, max_size=9), cut=st.integers(0, 9))
def test_a_group_stays_together_also_when_it_grows(
    disc_files: Discs, two_classes: ClassMap, tmp_path_factory: Any, groups: list[int], cut: int
) -> None:
    paths = disc_files(9)
    folder = tmp_path_factory.mktemp("groups")
    with ProjectStore.create(folder / "p", two_classes) as store:
        session = Session(store)
        new = [NewImage(p, group=f"patient{g}") for p, g in zip(paths, groups, strict=False)]
        add_images(session, new[:cut])
        before = splits(session)
        add_images(session, new[cut:])
        assert {k: v for k, v in splits(session).items() if k in before} == before
        sides: dict[str, set[Split]] = {}
        for sample in store.samples():
            sides.setdefault(sample.group, set()).add(sample.split)
        assert all(len(side) == 1 for side in sides.values())
        if len(sides) >= 3 and not before:
            assert {Split.VALIDATION} in sides.values()


def test_groups_come_from_file_names(session: Session, disc_files: Discs) -> None:
    paths = disc_files(3)
    with pytest.raises(InputError, match=r"finds no group in cell0.png"):
        add_images(session, [NewImage(p) for p in paths], group_by=r"patient(\d)")
    with pytest.raises(InputError, match="is not a regular expression"):
        add_images(session, [NewImage(p) for p in paths], group_by="(")
    added = add_images(session, [NewImage(p) for p in paths], group_by=r"cell([01]|2)")
    assert [s.group for s in added.samples] == ["0", "1", "2"]


def test_a_given_split_overrules_the_draw(session: Session, disc_files: Discs) -> None:
    paths = disc_files(10)
    new = [NewImage(p, split=Split.TRAIN) for p in paths]
    add_images(session, new[:8])
    assert set(splits(session).values()) == {Split.TRAIN}
    add_images(session, [NewImage(paths[8], split=Split.VALIDATION), new[9]])
    assert splits(session)["cell8.png"] is Split.VALIDATION


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(("images", "unknown"), [(6, (3,)), (15, (2, 7, 11))])
def test_images_a_model_learnt_from_never_check_it_and_others_are_also_learnt_from(
    session: Session, disc_files: Discs, make_model: Callable[..., Path], images: int,
    unknown: tuple[int, ...], at_once: bool,
) -> None:  # fmt: skip
    """A model of the project that has seen nearly all images."""
    from segdesk.core.card import ModelCard
    from segdesk.io.images import hash_file

    paths = disc_files(images)
    folder = make_model(session.store.folder / "models" / "seen")
    card = ModelCard.parse((folder / "card.json").read_text("utf-8"), "card")
    learnt = tuple(hash_file(p) for n, p in enumerate(paths) if n not in unknown)
    text = card.model_copy(update={"trained_ids": learnt}).model_dump_json()
    (folder / "card.json").write_text(text, "utf-8")
    new = [NewImage(p) for p in paths]
    for part in [new] if at_once else [[one] for one in new]:
        add_images(session, part)
    held = {name for name, side in splits(session).items() if side is Split.VALIDATION}
    assert held <= {f"cell{n}.png" for n in unknown}
    assert len(held) == (len(unknown) + 1) // 2


def test_the_rehearsal_images_of_the_shipped_model_are_not_in_the_sample_project() -> None:
    from segdesk.io.images import hash_file
    from segdesk.session.models import list_models

    learnt = {sha for entry in list_models() for sha in entry.card.trained_ids}
    shown = {hash_file(p) for p in find_images([sample_folder() / "images"])}
    assert len(shown) == 18
    assert not learnt & shown
