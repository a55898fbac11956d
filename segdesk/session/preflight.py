"""Looking at a project before fine-tuning starts: what would fail, and what would mislead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open

from segdesk.config.training import TrainingConfig
from segdesk.core.address import put_back
from segdesk.core.annotation import Annotation
from segdesk.core.errors import InputError, SegDeskError
from segdesk.core.finding import Finding, FindingKind, Severity
from segdesk.core.sample import Sample, Split, Status
from segdesk.core.verdict import FEWEST_IMAGES
from segdesk.io.atomic import free_bytes
from segdesk.io.images import read_image
from segdesk.io.packages import REHEARSAL, WEIGHTS
from segdesk.io.store import ProjectStore
from segdesk.session.class_names import class_question, written
from segdesk.session.image_facts import ImageFacts, ImageFactsCache
from segdesk.session.label_facts import LabelFacts, find_facts, tiny_pieces
from segdesk.session.lookalikes import LookAlikes
from segdesk.session.models import ModelEntry
from segdesk.session.predicting import check_channels
from segdesk.session.training import (
    Labelled,
    NewModel,
    common_channels,
    find_start,
    require_training_images,
)

#: Room a run needs, in times the size of the weights: the best and the last checkpoint, the
#: new model in the run's folder and its copy among the project's models.
COPIES: Final = 4

#: Images whose sides differ more than so many times hardly show things at one scale.
SIZE_RATIO: Final = 4

#: Findings of one kind that :func:`words` shows.
SHOWN: Final = 3

_ORDER = list(Severity)
_KINDS = list(FindingKind)

Progress = Callable[[int, int], None]


@dataclass
class _Subject:
    """A sample that the run would use, with what is known of its files."""

    sample: Sample
    annotation: Annotation | None = None
    image: ImageFacts | None = None
    labels: LabelFacts | None = None

    @property
    def is_held_back(self) -> bool:
        return self.sample.split is Split.VALIDATION


@dataclass
class _Scene:
    """All that the findings are made from."""

    store: ProjectStore
    config: TrainingConfig
    entry: ModelEntry | None
    new: NewModel | None
    subjects: list[_Subject] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(
        self,
        kind: FindingKind,
        severity: Severity,
        text: str,
        sample: Sample | None = None,
        place: tuple[int, ...] | None = None,
    ) -> None:
        self.findings.append(
            Finding(kind, severity, text, None if sample is None else sample.id, place)
        )

    @property
    def learnt(self) -> list[_Subject]:
        return [s for s in self.subjects if not s.is_held_back]

    @property
    def held(self) -> list[_Subject]:
        return [s for s in self.subjects if s.is_held_back]


def examine(
    store: ProjectStore,
    config: TrainingConfig,
    model: str | None = None,
    new: NewModel | None = None,
    progress: Progress = lambda done, total: None,
) -> list[Finding]:
    """Look for what would make a run fail or its result mislead, the worst first.

    Reads every file that the run would read. What it learns of the images is kept in the
    project's ``cache`` folder, so that a second look is fast. It changes nothing else, and
    may run in a thread of its own on a store of its own, opened for reading only.

    Parameters
    ----------
    model, new
        What the run would start from, as in :func:`segdesk.session.training.start`.
    progress
        Called with the number of parts of the work that are done, and of all.

    Returns
    -------
    list of Finding
        Empty if all is well. One of severity ``stop`` means that the run would fail.
    """
    try:
        entry = None if new is not None else find_start(store, model)
    except InputError as error:
        return [Finding(FindingKind.MODEL, Severity.STOP, error.message)]
    scene = _Scene(store, config, entry, new)
    _look_at_labels(scene)
    total = len(scene.subjects) + len(scene.held)
    _look_at_images(scene, lambda done: progress(done, total))
    _check_duplicates(scene, lambda done: progress(len(scene.subjects) + done, total))
    for check in (
        _check_subjects, _check_channels, _check_model, _check_disk, _check_classes,
        _check_masks, _check_validation, _check_sizes,
    ):  # fmt: skip
        check(scene)
    progress(total, total)
    return sorted(scene.findings, key=lambda f: (_ORDER.index(f.severity), _KINDS.index(f.kind)))


def is_blocked(findings: Sequence[Finding]) -> bool:
    """Tell whether a run would fail."""
    return any(finding.severity is Severity.STOP for finding in findings)


# What there is -----------------------------------------------------------------


def _look_at_labels(scene: _Scene) -> None:
    store, new = scene.store, scene.new
    learns_without = new is not None and not new.needs_labels
    for sample in store.samples():
        try:
            annotation = store.annotation(sample.id)
        except SegDeskError as error:
            scene.add(FindingKind.LABELS, Severity.STOP, f"{sample.name}: {error.message}", sample)
            continue
        if annotation is not None and annotation.supervision.any():
            is_accepted = sample.status is Status.ACCEPTED
            facts = find_facts(annotation, is_accepted=is_accepted)
            scene.subjects.append(_Subject(sample, annotation, labels=facts))
        elif learns_without and sample.split is Split.TRAIN:
            scene.subjects.append(_Subject(sample))


def _look_at_images(scene: _Scene, progress: Callable[[int], None]) -> None:
    cache = ImageFactsCache(scene.store.folder)
    for done, subject in enumerate(scene.subjects):
        progress(done)
        sample = subject.sample
        try:
            subject.image = cache.of(sample.path)
        except SegDeskError as error:
            scene.add(FindingKind.IMAGE, Severity.STOP, error.message, sample)
            continue
        if subject.image.sha256 != sample.sha256:
            _add_changed(scene, subject, subject.image)
    cache.save()


def _add_changed(scene: _Scene, subject: _Subject, image: ImageFacts) -> None:
    sample = subject.sample
    what = "has changed since it was added"
    if image.shape != sample.shape:
        what = "has changed its size since it was labelled"
    scene.add(
        FindingKind.IMAGE,
        Severity.STOP,
        f"{sample.name} {what}, so its labels may not fit any more; {put_back(sample.path)}, or "
        "take the image out of the project with 'segdesk remove' and add it anew.",
        sample,
    )


# What follows from it ------------------------------------------------------------


def _check_subjects(scene: _Scene) -> None:
    if scene.new is not None and not scene.new.needs_labels and scene.learnt:
        return
    labelled = [
        Labelled(s.sample, s.annotation, has_strokes=False)
        for s in scene.subjects
        if s.annotation is not None and s.labels is not None and s.labels.counts.any()
    ]
    try:
        require_training_images(labelled)
    except InputError as error:
        scene.add(FindingKind.NOTHING_TO_LEARN, Severity.STOP, error.message)
        return
    if len(scene.learnt) == 1:
        only = scene.learnt[0].sample
        scene.add(
            FindingKind.ONE_IMAGE,
            Severity.NOTE,
            f"{only.name} is the only image to learn from; the model may suit that one and no "
            "other, so correct a few more.",
            only,
        )


def _check_channels(scene: _Scene) -> None:
    if scene.entry is None:
        try:
            if scene.subjects:
                common_channels([s.sample for s in scene.subjects])
        except InputError as error:
            scene.add(FindingKind.CHANNELS, Severity.STOP, error.message)
        return
    for subject in scene.subjects:
        try:
            check_channels(subject.sample, scene.entry)
        except InputError as error:
            scene.add(FindingKind.CHANNELS, Severity.STOP, error.message, subject.sample)


def _check_model(scene: _Scene) -> None:
    entry = scene.entry
    if entry is None:
        return
    weights = entry.folder / WEIGHTS
    try:
        with safe_open(weights, "np"):
            pass
    except (SafetensorError, OSError) as error:
        scene.add(
            FindingKind.MODEL,
            Severity.STOP,
            f"The weights of {entry.name!r} ({weights}) are damaged ({error}); copy the model "
            "again.",
        )
    question = class_question(scene.store, entry, scene.config)
    if question is not None and not question.is_answered:
        like = question.answers or {question.unknown[0]: question.free[0]}
        scene.add(
            FindingKind.OTHER_NAMES,
            Severity.WARN,
            f"{entry.name} may know {_list(question.unknown, 'or')} under another name "
            f"({_list(question.free, 'or')}); if so, say it in Same classes (--set "
            f'same_classes="{written(like)}").',
        )
    ours, theirs = scene.store.classes.names, scene.config.named(entry.card.classes)
    unknown = [name for name in ours[1:] if name not in theirs]
    lost = [name for name in theirs[1:] if name not in ours]
    if unknown:
        scene.add(
            FindingKind.CLASSES,
            Severity.WARN,
            f"{entry.name} does not know {_list(unknown)}: it learns that from nothing, which "
            "takes more images and steps, and there is no score before to compare with. Classes of "
            "the same name are taken over.",
        )
    if lost:
        scene.add(
            FindingKind.CLASSES,
            Severity.WARN,
            f"{entry.name} knows {_list(lost)}, which this project does not have: the new model "
            "will not know that any more, and images it learnt from are not repeated.",
        )


def _check_disk(scene: _Scene) -> None:
    if scene.entry is None:
        return  # how large an untrained model is, is not known here
    weights = scene.entry.folder / WEIGHTS
    if not weights.is_file():
        return
    needed = COPIES * weights.stat().st_size + 2 * _size_of(scene.entry.folder / REHEARSAL)
    free = free_bytes(scene.store.folder)
    if free < needed:
        scene.add(
            FindingKind.DISK,
            Severity.STOP,
            f"The disk holding {scene.store.folder} is full; free some space and try again: "
            f"checkpoints and model take {_megabytes(needed)}, and {_megabytes(free)} are left.",
        )


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _check_classes(scene: _Scene) -> None:
    learnt = [s.labels for s in scene.learnt if s.labels is not None]
    if not learnt or (scene.new is not None and not scene.new.needs_labels):
        return
    names = scene.store.classes.names
    seen = {value for facts in learnt for value in facts.values}
    if not seen:
        return
    repeated = _repeated_classes(scene)
    missing = [n for v, n in enumerate(names) if v not in seen and n not in repeated]
    if not missing:
        return
    if len(seen) == 1:
        only = names[next(iter(seen))]
        scene.add(
            FindingKind.ONE_CLASS,
            Severity.STOP if scene.new is not None else Severity.WARN,
            f"Only {only} is painted or accepted, and from one class alone a model learns that "
            f"everything is {only}: paint some {_list(missing, 'or')} too, or accept an image.",
        )
        return
    scene.add(
        FindingKind.MISSING_CLASS,
        Severity.WARN,
        f"No pixel of {_list(missing, 'or')} is painted or accepted in an image to learn from, so "
        "the model will unlearn it: paint some of it too, or accept an image.",
    )


def _repeated_classes(scene: _Scene) -> set[str]:
    """Return the classes in images that the model carries along and the run repeats."""
    if scene.entry is None or not scene.config.replay:
        return set()
    theirs, ours = scene.config.named(scene.entry.card.classes), scene.store.classes.names
    folder = scene.entry.folder / REHEARSAL / "labels"
    if not folder.is_dir() or not set(theirs) <= set(ours):
        return set()
    found: set[int] = set()
    for file in sorted(folder.glob("*.png")):
        try:
            found |= set(read_image(file).data.ravel().tolist())
        except InputError:
            continue  # the run says what is wrong with the model
        if len(found) >= len(theirs):
            break
    return {theirs[value] for value in found if value < len(theirs)}


def _check_masks(scene: _Scene) -> None:
    labelled = [(s, s.labels) for s in scene.subjects if s.labels is not None]
    for subject, facts in labelled:
        is_empty = facts.counts[0] > 0 and not facts.counts[1:].any()
        if facts.has_accepted and is_empty:
            background = scene.store.classes.names[0]
            scene.add(
                FindingKind.EMPTY_MASK,
                Severity.WARN,
                f"{subject.sample.name} is accepted with nothing but {background}; if there is "
                "something in it, correct it, or take the acceptance back.",
                subject.sample,
            )
    names = scene.store.classes.names
    for (subject, _), slips in zip(labelled, tiny_pieces([f for _, f in labelled]), strict=True):
        if slips:
            kinds = sorted({names[p.value] for p in slips if p.value < len(names)})
            one = len(slips) == 1
            number = "a tiny piece" if one else f"{len(slips)} tiny pieces"
            slip = "looks like a slip" if one else "look like slips"
            most = max(p.pixels for p in slips)
            size = f"{'' if one else 'at most '}{most} pixel{'' if most == 1 else 's'}"
            scene.add(
                FindingKind.ISLANDS,
                Severity.WARN,
                f"{subject.sample.name} has {number} of {_list(kinds)} ({size}), which "
                f"{slip} of the brush; remove {'it if it is' if one else 'them if they are'}.",
                subject.sample,
                slips[0].place,
            )


def _check_duplicates(scene: _Scene, progress: Callable[[int], None]) -> None:
    learnt = [(s, s.image) for s in scene.learnt if s.image is not None]
    held = [(s, s.image) for s in scene.held if s.image is not None]
    if not held:
        return
    index = LookAlikes([image.small for _, image in learnt])
    for done, (subject, image) in enumerate(held):
        progress(done)
        name = subject.sample.name
        found = index.of(image.small, partial(progress, done))
        if found:
            twins = [learnt[n][0].sample.name for n, _ in sorted(found.items(), key=_by_likeness)]
            scene.add(
                FindingKind.DUPLICATE,
                Severity.WARN,
                f"{name}, which is held back to check the model, shows the same as {_list(twins)}, "
                "which it learns from: the score would be too good. Take one of them out with "
                "'segdesk remove'.",
                subject.sample,
            )
        if scene.entry is not None and subject.sample.sha256 in scene.entry.card.trained_ids:
            scene.add(
                FindingKind.LEARNT_BEFORE,
                Severity.WARN,
                f"{name} is held back to check the model, but {scene.entry.name} has learnt from "
                "it before: the score would be too good. Start from another model.",
                subject.sample,
            )


def _by_likeness(entry: tuple[int, float]) -> float:
    return -entry[1]


def _check_validation(scene: _Scene) -> None:
    judged = [s for s in scene.held if s.labels is not None and s.labels.counts.any()]
    if not judged:
        scene.add(
            FindingKind.NO_VALIDATION,
            Severity.WARN,
            "None of the images held back for validation is labelled, so no score can be given; "
            "label those that are marked “held back”.",
        )
    elif not any(counts[1:].any() for counts in (s.labels.counts for s in judged if s.labels)):
        scene.add(
            FindingKind.NO_VALIDATION,
            Severity.WARN,
            f"In the images held back nothing but {scene.store.classes.names[0]} is labelled, so "
            "their Dice would say nothing; label more of those that are marked “held back”.",
        )
    elif len(judged) < FEWEST_IMAGES:
        number = f"{len(judged)} image{' is' if len(judged) == 1 else 's are'}"
        scene.add(
            FindingKind.FEW_VALIDATION,
            Severity.NOTE,
            f"Only {number} held back and labelled; below {FEWEST_IMAGES}, nobody can tell whether "
            "the new model is better.",
        )


def _check_sizes(scene: _Scene) -> None:
    sized = [(s.sample, s.image.shape[-2:]) for s in scene.learnt if s.image is not None]
    if not sized:
        return
    least = min(sized, key=lambda one: max(one[1]))
    most = max(sized, key=lambda one: max(one[1]))
    if max(most[1]) > SIZE_RATIO * max(least[1]):
        scene.add(
            FindingKind.SIZES,
            Severity.NOTE,
            f"{least[0].name} is {_size(least[1])} and {most[0].name} {_size(most[1])} pixels; if "
            "the things in them differ in size as much, the model learns less well: scale the "
            "images to one size of pixel first.",
            least[0],
        )
    crop = scene.config.crop_size
    small = [sample for sample, shape in sized if min(shape) < crop]
    if small:
        scene.add(
            FindingKind.SMALL,
            Severity.NOTE,
            f"{_count_names(small)} smaller than a crop of {crop} pixels and filled up with a "
            "mirror image; a smaller crop size is faster and as good.",
            small[0],
        )


# Words -----------------------------------------------------------------------------


def _list(names: Sequence[str], word: str = "and") -> str:
    """Return *a*, *a and b*, *a, b and c*; the last of many are counted."""
    shown = list(names) if len(names) <= 4 else [*names[:3], f"{len(names) - 3} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} {word} {shown[-1]}"


def _count_names(samples: Sequence[Sample]) -> str:
    return f"{_list([s.name for s in samples])} {'is' if len(samples) == 1 else 'are'}"


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _megabytes(number: int) -> str:
    return f"{number / 1e6:.1f} MB"


def words(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the findings in lines for the command line, few of each kind."""
    titles = {Severity.STOP: "Stop", Severity.WARN: "Look", Severity.NOTE: "Note"}
    for (severity, kind), same in groupby(findings, lambda f: (f.severity, f.kind)):
        lines = [f"{titles[severity]}: {finding.text}" for finding in same]
        yield from lines[:SHOWN]
        if len(lines) > SHOWN:
            yield f"{titles[severity]}: {len(lines) - SHOWN} more of this kind ({kind})."
