"""What a user keeps after a crash, a full disk and a read-only one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segdesk.core.annotation import Annotation, Edit
from segdesk.core.classes import ClassMap
from segdesk.core.errors import InputError
from segdesk.core.sample import Sample
from segdesk.io.labels import write_labels
from segdesk.io.store import ProjectStore

SHAPE = (12, 16)
ROOT = Path(__file__).resolve().parents[2]

#: Draws without end and says so after each stroke.
PAINTER = """
import sys
import numpy as np
from pathlib import Path
from segdesk.core.annotation import Edit
from segdesk.io.store import ProjectStore

store = ProjectStore.open(Path(sys.argv[1]))
n = 0
while True:
    n += 1
    before, after = np.zeros((2, 12, 16), np.uint8), np.full((2, 12, 16), n % 250, np.uint8)
    store.append_edit("a", Edit((0, 0), (12, 16), before, after, f"stroke {n}", n))
    print(n, flush=True)
"""

boxes = st.tuples(st.integers(0, 8), st.integers(0, 12), st.integers(1, 4), st.integers(1, 4))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("stroke"), boxes, st.integers(0, 5)),
        st.sampled_from([("undo",), ("redo",), ("revision",), ("reopen",)]),
    ),
    max_size=25,
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=steps)
def test_what_is_reopened_is_what_was_on_screen(
    tmp_path: Path, two_classes: ClassMap, new_sample: Callable[..., Sample], steps: list[tuple]
) -> None:
    shutil.rmtree(tmp_path / "p.segdesk", ignore_errors=True)
    store = ProjectStore.create(tmp_path / "p", two_classes)
    store.add_samples([new_sample()])
    blank = np.zeros(SHAPE, np.uint8)
    screen = store.write_revision("a", blank, blank, origin="test")
    try:
        for step, *values in [*steps, ("reopen",)]:
            if step == "stroke":
                store.append_edit("a", draw(screen, *values))
            elif step == "undo" and (edit := store.undo_edit("a")):
                screen.apply(edit, undo=True)
            elif step == "redo" and (edit := store.redo_edit("a")):
                screen.apply(edit)
            elif step == "revision":
                store.write_revision("a", screen.labels, screen.supervision, origin="test")
            elif step == "reopen":
                store.close()
                store = ProjectStore.open(tmp_path / "p")
                check_same(store, screen)
    finally:
        store.close()


def draw(screen: Annotation, box: tuple[int, int, int, int], value: int) -> Edit:
    y, x, height, width = box
    where = (slice(y, y + height), slice(x, x + width))
    before = np.stack([screen.labels[where], screen.supervision[where]])
    after = np.full_like(before, value)
    edit = Edit((y, x), (y + height, x + width), before, after, "paint", 0.0)
    screen.apply(edit)
    return edit


def check_same(store: ProjectStore, screen: Annotation) -> None:
    stored = store.annotation("a")
    assert stored is not None
    np.testing.assert_array_equal(stored.labels, screen.labels)
    np.testing.assert_array_equal(stored.supervision, screen.supervision)


@pytest.mark.parametrize("strokes", [1, 40])
def test_a_killed_process_loses_no_stroke_it_reported(store: ProjectStore, strokes: int) -> None:
    store.close()
    child = subprocess.Popen(
        [sys.executable, "-c", PAINTER, store.folder], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert child.stdout is not None
    for _ in range(strokes):
        child.stdout.readline()
    child.kill()
    reported = strokes + len([n for n in child.stdout.read().split("\n")[:-1] if n])
    child.wait()
    child.stdout.close()
    with ProjectStore.open(store.folder) as again:
        found = again.edits("a")
        assert [e.tool for e in found][:reported] == [f"stroke {n + 1}" for n in range(reported)]
        assert len(found) - reported in (0, 1)  # the stroke in hand may be there
        annotation = again.annotation("a")
        assert annotation is not None
        assert (annotation.labels == len(found) % 250).all()


def test_a_revision_file_without_its_row_is_ignored(store: ProjectStore) -> None:
    """Killed between the file and the commit: the old revision stands."""
    orphan = store.revision_file("a", 2)
    shutil.copy(store.revision_file("a", 1), orphan)
    annotation = store.annotation("a")
    assert annotation is not None
    assert annotation.revision == 1
    ones = np.ones(SHAPE, np.uint8)
    assert store.write_revision("a", ones, ones, origin="test").revision == 2
    annotation = store.annotation("a")
    assert annotation is not None
    assert annotation.labels.all()


def test_a_full_disk_keeps_every_stroke_it_took(
    tmpfs: Callable[..., Path], two_classes: ClassMap, new_sample: Callable[..., Sample]
) -> None:
    disk = tmpfs("size=2m")
    shape = (128, 128)
    noise = np.random.default_rng(0).integers(0, 200, (2, *shape), np.uint8)
    taken = 0
    with ProjectStore.create(disk / "p", two_classes) as store:
        store.add_samples([new_sample(shape=shape)])
        store.write_revision("a", noise[0], noise[1], origin="test")

        def fill() -> None:
            nonlocal taken
            for _ in range(1000):
                store.append_edit("a", Edit((0, 0), shape, noise, noise, "paint", 0.0))
                taken += 1

        with pytest.raises(InputError, match=r"The disk holding .* is full; free some space and"):
            fill()
        assert taken > 3
        assert len(store.edits("a")) == taken
        big = np.random.default_rng(0).integers(0, 200, (2, 3000, 3000), np.uint8)
        with pytest.raises(InputError, match="full; free some space"):
            write_labels(store.revision_file("a", 2), *big)
    shutil.copytree(disk / "p.segdesk", disk.parent / "copy.segdesk")
    with ProjectStore.open(disk.parent / "copy") as store:
        assert len(store.edits("a")) == taken
        store.append_edit("a", Edit((0, 0), shape, noise, noise, "paint", 0.0))


def test_a_full_disk_makes_no_half_project(
    tmpfs: Callable[..., Path], two_classes: ClassMap
) -> None:
    disk = tmpfs("size=64k")
    with pytest.raises(InputError, match="is full; free some space"):
        ProjectStore.create(disk / "p", two_classes)
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("closed", [True, False])
def test_a_read_only_disk_can_be_looked_at(
    tmpfs: Callable[..., Path], store: ProjectStore, closed: bool
) -> None:
    store.set("a", 1)
    disk = tmpfs("size=4m")
    if closed:
        store.close()
    shutil.copytree(store.folder, disk / "p.segdesk", ignore=shutil.ignore_patterns("*-shm"))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(InputError, match="cannot be written to because its disk is read-only"):
        ProjectStore.open(disk / "p")
    if closed:
        with ProjectStore.open(disk / "p", read_only=True) as reader:
            assert reader.get("a") == 1
            assert reader.annotation("a") is not None
    else:  # the newest changes are in a log that cannot be read here
        with pytest.raises(InputError, match="not closed properly and its disk is read-only"):
            ProjectStore.open(disk / "p", read_only=True)


def test_looking_leaves_nothing_beside_the_database(store: ProjectStore) -> None:
    store.set("a", 1)
    folder = store.folder
    store.close()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with ProjectStore.open(folder, read_only=True) as reader:
        assert reader.get("a") == 1
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after == before
    # Nothing is taken from under a program that writes meanwhile.
    with ProjectStore.open(folder, read_only=True) as reader:
        writer = ProjectStore.open(folder)
        writer.set("a", 2)
    with ProjectStore.open(folder, read_only=True) as reader:
        assert reader.get("a") == 2
    writer.close()
