from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segdesk.core.annotation import Edit
from segdesk.core.classes import ClassMap
from segdesk.core.errors import InputError, SegDeskError
from segdesk.core.prediction import Prediction
from segdesk.core.run import Run, RunState
from segdesk.core.sample import Sample, Split, Status
from segdesk.io.lock import ProjectLock
from segdesk.io.store import DATABASE_NAME, ProjectStore

NewSample = Callable[..., Sample]


def stroke(value: int, row: int = 0) -> Edit:
    after = np.stack([np.full((2, 3), value, np.uint8), np.full((2, 3), 2, np.uint8)])
    return Edit((row, 1), (row + 2, 4), np.zeros((2, 2, 3), np.uint8), after, "paint", 1.5)


def test_a_project_remembers_everything(
    tmp_path: Path, two_classes: ClassMap, new_sample: NewSample
) -> None:
    with ProjectStore.create(tmp_path / "cells", two_classes) as store:
        assert store.folder == tmp_path / "cells.segdesk"
        stack = replace(new_sample("b", (3, 4, 5)), reference=tmp_path / "b-mask.tif", group="p1")
        store.add_samples([new_sample("z"), stack])
        store.replace_sample(replace(stack, status=Status.PREDICTED, score=0.25))
        store.set("model", {"name": "unet", "sizes": [1, 2]})
    with ProjectStore.open(tmp_path / "cells") as store:
        assert store.classes == two_classes
        assert store.samples() == [
            new_sample("z"),
            replace(stack, status=Status.PREDICTED, score=0.25),
        ]
        assert store.get("model") == {"name": "unet", "sizes": [1, 2]}
        assert store.get("never set", 3) == 3
        assert store.annotation("z") is None
    assert [p.name for p in tmp_path.iterdir()] == ["cells.segdesk"]


def test_a_moved_project_finds_its_copied_images(
    tmp_path: Path, two_classes: ClassMap, new_sample: NewSample
) -> None:
    with ProjectStore.create(tmp_path / "a", two_classes) as store:
        inside = store.folder / "images" / "a.png"
        store.add_samples(
            [new_sample("a", path=inside), new_sample("b", path=Path("images/b.png"))]
        )
        folder = store.folder / "predictions" / "a" / "unet-1"
        store.record_prediction(Prediction("a", "unet", folder, 0.5), "ff")
        store.put_run(Run("r1", store.folder / "runs" / "r1", "unet", RunState.QUEUED))
        outside = new_sample("c", path=tmp_path / "c.png")
        store.add_samples([outside])
    moved = tmp_path / "elsewhere.segdesk"
    shutil.move(tmp_path / "a.segdesk", moved)
    (moved / "predictions" / "a" / "unet-1").mkdir(parents=True)
    with ProjectStore.open(moved / DATABASE_NAME) as store:
        assert [s.path for s in store.samples()] == [
            moved / "images/a.png",
            moved / "images/b.png",
            outside.path,
        ]
        found = store.prediction("a", "unet")
        assert found == Prediction("a", "unet", moved / "predictions/a/unet-1", 0.5)
        assert store.runs()[0].folder == moved / "runs/r1"


def test_create_refuses_a_folder_with_something_in_it(
    tmp_path: Path, two_classes: ClassMap
) -> None:
    (tmp_path / "a.segdesk").mkdir()
    (tmp_path / "a.segdesk" / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match=r"a\.segdesk exists already; open it"):
        ProjectStore.create(tmp_path / "a", two_classes)
    assert [p.name for p in tmp_path.rglob("*")] == ["a.segdesk", "precious.txt"]
    (tmp_path / "empty.segdesk").mkdir()
    ProjectStore.create(tmp_path / "empty.segdesk", two_classes).close()


def test_open_says_what_is_wrong(tmp_path: Path, two_classes: ClassMap) -> None:
    with pytest.raises(InputError, match="does not exist; check the path"):
        ProjectStore.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"is not a SegDesk project: it holds no project\.db"):
        ProjectStore.open(tmp_path)
    ProjectStore.create(tmp_path / "a", two_classes).close()
    database = tmp_path / "a.segdesk" / DATABASE_NAME
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(InputError) as error:
        ProjectStore.open(tmp_path / "a")
    assert error.value.message == (
        "a.segdesk was made by a newer SegDesk (format 7, this one reads up to 1); update SegDesk."
    )


@pytest.mark.parametrize("keep", [0, 100, 0.5])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_damaged_database_is_told(store: ProjectStore, keep: float, read_only: bool) -> None:
    store.close()
    database = store.folder / DATABASE_NAME
    content = database.read_bytes()
    if keep == 100:
        database.write_bytes(b"garbage" * 1000)
    else:
        database.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(InputError, match=r"damaged|was not made by SegDesk"):
        ProjectStore.open(store.folder, read_only=read_only)
    database.write_bytes(content)
    ProjectStore.open(store.folder).close()  # and the lock is free


def test_a_second_window_is_refused_until_the_first_closes(store: ProjectStore) -> None:
    with pytest.raises(
        InputError, match=r"project\.segdesk is open in another SegDesk window \(pr"
    ):
        ProjectStore.open(store.folder)
    with ProjectStore.open(store.folder, read_only=True) as reader:
        store.set("a", 1)
        assert reader.get("a") == 1
        with pytest.raises(InputError, match="open for reading only"):
            reader.set("a", 2)
    store.close()
    store.close()
    ProjectStore.open(store.folder).close()


def test_the_lock_is_the_folders(tmp_path: Path) -> None:
    lock = ProjectLock(tmp_path)
    with pytest.raises(InputError, match=r"\(process \d+\); close it there first"):
        ProjectLock(tmp_path)
    lock.release()
    ProjectLock(tmp_path).release()


def test_samples_are_found_by_name_and_the_nearest_is_named(
    store: ProjectStore, new_sample: NewSample
) -> None:
    store.add_samples([replace(new_sample("b"), name="cell_01.png")])
    store.add_samples([replace(new_sample(i), name="twin.png") for i in ("t1", "t2")])
    assert store.sample("cell_01.png") == store.sample("b")
    with pytest.raises(InputError, match=r"no image cel_01\.png; did you mean cell_01\.png\?"):
        store.sample("cel_01.png")
    with pytest.raises(InputError, match=r"2 images are called twin\.png; use one of the ids t1"):
        store.sample("twin.png")


def test_adding_is_all_or_nothing(store: ProjectStore, new_sample: NewSample) -> None:
    with pytest.raises(ValueError, match="cannot be added"):
        store.add_samples([new_sample("b"), new_sample("a")])
    assert [s.id for s in store.samples()] == ["a"]


@pytest.mark.parametrize("change", [{"split": Split.VALIDATION}, {"sha256": "11"}])
def test_split_and_image_stay(store: ProjectStore, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="chosen once and stay"):
        store.replace_sample(replace(store.sample("a"), **change))


def test_a_stale_sample_does_not_take_back_a_revision(store: ProjectStore) -> None:
    stale = store.sample("a")
    store.write_revision(
        "a", np.ones((12, 16), np.uint8), np.ones((12, 16), np.uint8), origin="test"
    )
    store.replace_sample(replace(stale, status=Status.ACCEPTED))
    assert (store.sample("a").head, store.sample("a").status) == (2, Status.ACCEPTED)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Zelle Ä 01.PNG", "zelle-a-01"),
        ("a.tif", "a-2"),
        ("con.png", "image-con"),
        ("細胞.png", "image"),
        ("x.ome.tif", "x-ome"),
        ("given.png", "given-2"),
        ("..png", "image"),
    ],
)
def test_ids_are_folder_names_everywhere(store: ProjectStore, name: str, expected: str) -> None:
    assert store.new_sample_id(name, {"given"}) == expected


def test_revisions_keep_their_files(store: ProjectStore) -> None:
    for value in (1, 0):
        array = np.full((12, 16), value, np.uint8)
        written = store.write_revision("a", array, array, origin=f"unet {value}")
    assert written.revision == store.sample("a").head == 3
    assert [(r.number, r.origin) for r in store.revisions("a")][1:] == [
        (2, "unet 1"),
        (3, "unet 0"),
    ]
    assert all(r.file.is_file() for r in store.revisions("a"))
    assert store.revision_file("a", 3) == store.folder / "labels" / "a" / "r0003.tif"
    with pytest.raises(ValueError, match="the labels are"):
        store.write_revision("a", np.zeros((2, 2), np.uint8), array, origin="x")
    with pytest.raises(InputError, match="no sample nope"):
        store.write_revision("nope", array, array, origin="x")


def test_strokes_undo_and_redo(store: ProjectStore) -> None:
    for value in (1, 2, 3):
        store.append_edit("a", stroke(value, value))
    for value in (3, 2):
        undone = store.undo_edit("a")
        assert undone is not None
        assert undone.after[0].max() == value
    assert store.edit_counts("a") == (1, 2)
    redone = store.redo_edit("a")
    assert redone is not None
    assert redone.after[0].max() == 2
    assert (redone.start, redone.stop, redone.tool, redone.time) == ((2, 1), (4, 4), "paint", 1.5)
    store.append_edit("a", stroke(4))
    assert store.edit_counts("a") == (3, 0)
    assert store.redo_edit("a") is None
    assert [e.after[0].max() for e in store.edits("a")] == [1, 2, 4]


def test_a_revision_ends_undo_and_redo(store: ProjectStore) -> None:
    store.append_edit("a", stroke(1))
    store.append_edit("a", stroke(2))
    store.undo_edit("a")
    current = store.annotation("a")
    assert current is not None
    store.write_revision("a", current.labels, current.supervision, origin="accepted")
    assert store.edit_counts("a") == (0, 0)
    assert store.undo_edit("a") is None
    after = store.annotation("a")
    assert after is not None
    np.testing.assert_array_equal(after.labels, current.labels)


def test_strokes_that_cannot_be_are_refused(store: ProjectStore, new_sample: NewSample) -> None:
    store.add_samples([new_sample("b")])
    with pytest.raises(ValueError, match="no labels to draw on"):
        store.append_edit("b", stroke(1))
    with pytest.raises(ValueError, match="not inside"):
        store.append_edit("a", stroke(1, row=11))
    with pytest.raises(ValueError, match="needs uint8 arrays"):
        store.append_edit("a", replace(stroke(1), after=np.zeros((2, 9, 9), np.uint8)))


def test_a_lost_label_file_is_told(store: ProjectStore) -> None:
    store.revision_file("a", 1).unlink()
    with pytest.raises(SegDeskError, match=r"r0001\.tif does not exist"):
        store.annotation("a")


def test_predictions_are_those_of_the_weights(store: ProjectStore) -> None:
    folder = store.folder / "predictions" / "a" / "unet-1"
    store.record_prediction(Prediction("a", "unet", folder, 0.5), "ff")
    assert store.prediction("a", "unet") is None  # its folder is gone
    folder.mkdir(parents=True)
    assert store.prediction("a", "unet", "ff") == Prediction("a", "unet", folder, 0.5)
    assert store.prediction("a", "unet", "ee") is None
    assert store.prediction("a", "other") is None
    store.record_prediction(Prediction("a", "unet", folder, 0.1), "ee")
    assert store.prediction("a", "unet", "ee") == Prediction("a", "unet", folder, 0.1)


def test_a_run_ends_once(store: ProjectStore) -> None:
    run = Run("r1", store.folder / "runs" / "r1", "unet", RunState.QUEUED)
    store.put_run(run)
    store.put_run(replace(run, id="r2"))
    ended = replace(run, state=RunState.COMPLETED, new_model="unet-2", after={"dice": 0.9})
    store.put_run(ended)
    store.put_run(replace(ended, before={"dice": 0.5}))
    for state in (RunState.RUNNING, RunState.FAILED):
        with pytest.raises(ValueError, match="has ended as completed"):
            store.put_run(replace(ended, state=state))
    assert store.runs() == [replace(ended, before={"dice": 0.5}), replace(run, id="r2")]
    # One that was stopped may wait for its turn again, and no more than that.
    stopped = replace(run, id="r2", state=RunState.CANCELED)
    store.put_run(stopped)
    with pytest.raises(ValueError, match="has ended as canceled"):
        store.put_run(replace(stopped, state=RunState.RUNNING))
    store.put_run(replace(stopped, state=RunState.QUEUED))
    assert store.runs()[1].state is RunState.QUEUED


def test_a_snapshot_keeps_labels_and_strokes_together(store: ProjectStore) -> None:
    """A stroke that becomes part of a revision meanwhile is in what is read, and once."""
    store.append_edit("a", stroke(1))
    with ProjectStore.open(store.folder, read_only=True) as reader, reader.snapshot():
        now = store.annotation("a")
        assert now is not None
        store.write_revision("a", now.labels * 0, now.supervision, origin="test")
        seen = reader.annotation("a")
        assert seen is not None
        assert (seen.labels == now.labels).all()
        assert seen.labels.any()
        assert reader.edit_counts("a") == (1, 0)
    with ProjectStore.open(store.folder, read_only=True) as reader:
        assert reader.edit_counts("a") == (0, 0)
