"""Making projects and filling them with images and masks."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from segdesk.core.address import Address, is_remote, local_path, name_of, stem_of, to_address
from segdesk.core.annotation import Supervision
from segdesk.core.classes import ClassMap
from segdesk.core.errors import InputError
from segdesk.core.sample import Sample, Split, Status
from segdesk.io.atomic import explain_os_errors
from segdesk.io.images import IMAGE_SUFFIXES, ImageInfo
from segdesk.io.masks import MaskReading, read_mask
from segdesk.io.sources import hash_source, is_zarr, probe_source
from segdesk.io.store import FirstLabels, ProjectStore
from segdesk.session.models import list_models
from segdesk.session.session import Session

#: Share of the images held back to check models.
VALIDATION_SHARE = 0.2
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Look:
    """What a first look at an image told; ``sha256`` by :func:`hash_source`."""

    info: ImageInfo
    sha256: str


@dataclass(frozen=True)
class NewImage:
    """An image to add, with what is known of it beforehand.

    ``split`` overrules the draw; ``reference`` is a true mask to compare with; ``look`` is
    what :func:`look_at` found, where that was asked already.
    """

    path: Address
    mask: Path | None = None
    split: Split | None = None
    group: str = ""
    reference: Path | None = None
    look: Look | None = None


def look_at(address: Address) -> Look:
    """Find out what an image is like, and what is wrong with it; any thread may.

    Raises
    ------
    InputError
        It cannot be read.
    """
    return Look(probe_source(address), hash_source(address))


@dataclass
class Added:
    """What adding came to."""

    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def find_images(paths: Sequence[Address]) -> list[Address]:
    """Return the images among ``paths``, files and Zarr folders, and in the folders among them.

    An address is one image; whether it is there is not asked here.

    Raises
    ------
    InputError
        A path does not exist, or a folder holds no image.
    """
    found: list[Address] = []
    for address in paths:
        if (folder := _folder_of_images(address)) is not None:
            inside = sorted(p for p in folder.iterdir() if _is_image(p))
            if not inside:
                raise InputError(
                    f"The folder {folder} holds no images; SegDesk reads "
                    f"{', '.join(IMAGE_SUFFIXES)} and OME-Zarr."
                )
            found += inside
        elif is_remote(address):
            found.append(to_address(address))
        elif (path := local_path(address)).exists():
            found.append(path)
        else:
            raise InputError(f"There is no file {path}.")
    return found


def describe_others(paths: Sequence[Address]) -> list[str]:
    """Tell of files in the folders among ``paths`` that :func:`find_images` passes over."""
    told = []
    for folder in filter(None, map(_folder_of_images, paths)):
        others = [p for p in folder.iterdir() if _is_other(p)]
        if not others:
            continue
        kinds = ", ".join(sorted({p.suffix.lower() or "no ending" for p in others}))
        count = "1 file is" if len(others) == 1 else f"{len(others)} files are"
        told.append(
            f"{folder.name}: {count} not of a kind SegDesk reads and passed over ({kinds})."
        )
    return told


def _folder_of_images(address: Address) -> Path | None:
    """Return the folder at ``address``, unless that is an image, as Zarr is, or no folder."""
    path = None if is_remote(address) else local_path(address)
    return path if path is not None and path.is_dir() and not is_zarr(path) else None


def _is_other(path: Path) -> bool:
    return path.is_file() and not _is_image(path) and not path.name.startswith((".", "Thumbs."))


def _is_image(path: Path) -> bool:
    is_image = path.suffix.lower() in IMAGE_SUFFIXES or is_zarr(path)
    return is_image and not path.name.startswith(".")


def match_masks(images: Sequence[Address], folder: Path) -> list[NewImage]:
    """Pair images with the masks of the same stem in ``folder``.

    Raises
    ------
    InputError
        ``folder`` does not exist, or holds no mask for any of the images.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder} to take masks from.")
    by_stem = {p.stem: p for p in folder.iterdir() if p.suffix.lower() in MASK_SUFFIXES}
    pairs = [
        NewImage(path, mask=next((by_stem[s] for s in _stems(path) if s in by_stem), None))
        for path in images
    ]
    if not any(pair.mask for pair in pairs):
        raise InputError(
            f"No mask in {folder} is named like any of the images; a mask needs the name of its "
            "image, such as cell1.png for cell1.jpg."
        )
    return pairs


def _stems(path: Address) -> list[str]:
    """Return what a mask of the image may be called; of ``a.ome.zarr``, ``a.ome`` and ``a``."""
    name = name_of(path)
    return [Path(name).stem, stem_of(path), re.sub(r"(\.ome)?\.zarr(\.zip)?$", "", name)]


def add_images(
    session: Session,
    images: Sequence[NewImage],
    *,
    copy: bool = False,
    group_by: str = "",
    skip_bad: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Added:
    """Add images, and their masks as accepted labels.

    Every file is read before anything is written: an error leaves the project as
    it was. The split of an image is drawn once, here, by its content.

    Parameters
    ----------
    copy
        Copy the files into the project instead of referring to them.
    group_by
        Regular expression searched in the file names; images whose match (or
        first group) is the same share a split.
    skip_bad
        Report unusable files in ``Added.refused`` and add the others.

    Raises
    ------
    InputError
        A file cannot be used (without ``skip_bad``), an address is to be copied, or the
        disk is full.
    """
    elsewhere = next((image.path for image in images if is_remote(image.path)), None)
    if copy and elsewhere is not None:
        raise InputError(
            f"{elsewhere} is not on this computer and cannot be copied into the project; add it "
            "without copying, and it is read where it is."
        )
    added = Added()
    prepared = _prepare(session.store, images, group_by, skip_bad, added, progress)
    prepared = _draw_splits(session.store, prepared)
    with _copies(session.store.folder, prepared if copy else []) as copied:
        prepared = copied or prepared
        session.store.add_samples(
            [new.sample for new in prepared],
            {new.sample.id: _accepted(new.mask) for new in prepared if new.mask},
        )
    added.samples += [session.store.sample(new.sample.id) for new in prepared]
    added.notes += [new.note for new in prepared if new.note]
    added.notes += [
        f"{new.sample.name}: {new.mask.description}" for new in prepared if new.mask is not None
    ]
    session.events.samples_added.emit(added.samples)
    return added


@dataclass(frozen=True)
class _New:
    """A sample to be, with its mask; ``is_fixed``: its split was given and is not drawn."""

    sample: Sample
    mask: MaskReading | None
    is_fixed: bool
    note: str = ""


_Prepared = list[_New]


def _accepted(mask: MaskReading) -> FirstLabels:
    supervision = np.full(mask.labels.shape, Supervision.ACCEPTED, np.uint8)
    return FirstLabels(mask.labels, supervision, f"imported: {mask.description}")


def _prepare(
    store: ProjectStore,
    images: Sequence[NewImage],
    group_by: str,
    skip_bad: bool,
    added: Added,
    progress: Callable[[int, int], None],
) -> _Prepared:
    pattern = _pattern(group_by)
    known = {sample.sha256: sample.name for sample in store.samples()}
    taken: set[str] = set()
    prepared: _Prepared = []
    for done, image in enumerate(images):
        progress(done, len(images))
        try:
            new = _read(store, image, pattern, taken)
        except InputError as error:
            if not skip_bad:
                raise
            added.refused.append(error.message)
            continue
        sample = new.sample
        if sample.sha256 in known:
            twin = known[sample.sha256]
            there = "" if twin == sample.name else f" is the same image as {twin}, which"
            added.notes.append(f"{sample.name}{there} is in the project already; it was left out.")
            continue
        known[sample.sha256] = sample.name
        taken.add(sample.id)
        prepared.append(new)
    progress(len(images), len(images))
    return prepared


def _pattern(group_by: str) -> re.Pattern[str] | None:
    try:
        return re.compile(group_by) if group_by else None
    except re.error as error:
        raise InputError(f"{group_by!r} is not a regular expression: {error}.") from None


def _read(
    store: ProjectStore, image: NewImage, pattern: re.Pattern[str] | None, taken: set[str]
) -> _New:
    path = image.path if is_remote(image.path) else local_path(image.path).absolute()
    name = name_of(path)
    look = image.look or look_at(path)
    info = look.info
    group = image.group
    if pattern is not None:
        match = pattern.search(name)
        if match is None:
            raise InputError(
                f"The pattern {pattern.pattern!r} finds no group in {name}; every image needs one."
            )
        group = match.group(1) if pattern.groups else match.group(0)
    sample = Sample(
        id=store.new_sample_id(name, taken),
        name=name,
        path=path,
        sha256=look.sha256,
        shape=info.shape,
        channels=info.channels,
        dtype=info.dtype,
        split=image.split or Split.TRAIN,
        status=Status.ACCEPTED if image.mask else Status.NEW,
        group=group,
        reference=image.reference.absolute() if image.reference else None,
    )
    reading = read_mask(image.mask, store.classes, info.shape) if image.mask else None
    return _New(sample, reading, image.split is not None, info.note)


def _draw_splits(store: ProjectStore, prepared: _Prepared) -> _Prepared:
    """Hold back a fifth of the groups, chosen by content and never moved again.

    Groups that are in the project already keep their side. Images that a model
    learnt from never become validation, whatever their group, and of the others half at most.
    """
    old = store.samples()
    sides = {s.group: s.split for s in old if s.group}
    learnt = {sha for entry in list_models(store) for sha in entry.card.trained_ids}
    fixed = [new.sample for new in prepared if new.is_fixed]
    settled = (*old, *fixed)
    sides |= {s.group: s.split for s in fixed if s.group and s.group not in sides}
    fresh: dict[str, list[str]] = {}
    for new in prepared:
        if not new.is_fixed and new.sample.group not in sides:
            fresh.setdefault(_key(new.sample), []).append(new.sample.sha256)
    held = {_key(s) for s in settled if s.split is Split.VALIDATION}
    there = {_key(s) for s in settled}
    groups = len(there) + len(fresh)
    wanted = max(1, round(VALIDATION_SHARE * groups)) if groups >= 3 else 0
    # The hash orders the groups at random, and always the same way.
    usable = sorted(g for g, shas in fresh.items() if not learnt.intersection(shas))
    usable.sort(key=lambda group: min(fresh[group]))
    # Where a model knows most of the images, the others are of a new kind, and needed for learning.
    known = {_key(s) for s in settled if s.sha256 in learnt}
    unknown = len(there - known) + len(usable)
    wanted = min(wanted, (unknown + 1) // 2)
    chosen = set(usable[: max(0, wanted - len(held))])
    result: _Prepared = []
    for new in prepared:
        if not new.is_fixed:
            drawn = Split.VALIDATION if _key(new.sample) in chosen else Split.TRAIN
            side = sides.get(new.sample.group, drawn)
            if new.sample.sha256 in learnt:
                side = Split.TRAIN
            new = replace(new, sample=replace(new.sample, split=side))
        result.append(new)
    return result


def _key(sample: Sample) -> str:
    return sample.group or sample.sha256


@contextmanager
def _copies(folder: Path, prepared: _Prepared) -> Iterator[_Prepared]:
    """Copy images and references into the project; away again should the block fail."""
    made: list[Path] = []
    try:
        yield [_copied(folder, new, made) for new in prepared]
    except BaseException:
        for file in made:
            if file.is_dir():
                shutil.rmtree(file, ignore_errors=True)
            else:
                file.unlink(missing_ok=True)
        for parent in {file.parent for file in made}:
            with suppress(OSError):  # it holds others
                parent.rmdir()
        raise


def _copied(folder: Path, new: _New, made: list[Path]) -> _New:
    def copy(source: Path, part: str) -> Path:
        suffix = ".zarr.zip" if source.name.endswith(".zarr.zip") else source.suffix.lower()
        target = folder / part / f"{new.sample.id}{suffix}"
        with explain_os_errors(target):
            target.parent.mkdir(exist_ok=True)
            made.append(target)
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copyfile(source, target)
        return target

    reference = new.sample.reference
    sample = replace(
        new.sample,
        path=copy(local_path(new.sample.path), "images"),
        reference=copy(reference, "reference") if reference is not None else None,
    )
    return replace(new, sample=sample)


def remove_image(session: Session, sample_id: str) -> Path | None:
    """Take an image out of the project; its file stays, its labels go to ``removed/``.

    Raises
    ------
    InputError
        No such image, or the disk cannot be written.
    """
    kept = session.store.remove_sample(sample_id)
    session.events.sample_removed.emit(sample_id)
    return kept


def parse_classes(text: str) -> ClassMap:
    """Read ``background,nucleus`` into classes with default colours."""
    return ClassMap.from_names([name for name in text.split(",") if name.strip()])
