"""Which models there are, which is in use, and switching."""

from __future__ import annotations

import difflib
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from segdesk.core.calibration import Calibration
from segdesk.core.card import ModelCard
from segdesk.core.errors import InputError
from segdesk.core.run import Run, RunState
from segdesk.core.verdict import Judgement, judge
from segdesk.io.calibrations import read_calibration
from segdesk.io.packages import CARD, bundled_packages, hash_weights, read_card
from segdesk.io.store import ProjectStore

if TYPE_CHECKING:
    from segdesk.session.session import Session


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model that can be used: its name, folder and card."""

    name: str
    folder: Path
    card: ModelCard
    is_bundled: bool


def list_models(store: ProjectStore | None = None) -> list[ModelEntry]:
    """Return the bundled models, then the project's own from old to new.

    A damaged one of the project's is left out; :func:`find_model` says why.
    """
    entries = [
        ModelEntry(name, folder, read_card(folder), True)
        for name, folder in bundled_packages().items()
    ]
    if store is not None and (store.folder / "models").is_dir():
        own = []
        folders = (store.folder / "models").iterdir()
        for folder in (f for f in folders if not f.name.startswith(".")):
            with suppress(InputError):
                own.append(ModelEntry(folder.name, folder, read_card(folder), False))
        entries += sorted(own, key=lambda entry: (entry.card.created, entry.name))
    return entries


def find_model(name: str, store: ProjectStore | None = None) -> ModelEntry:
    """Find a model by name, or by the path of its folder.

    Raises
    ------
    InputError
        There is none (the nearest name is suggested), or it cannot be used.
    """
    entries = {entry.name: entry for entry in list_models(store)}
    if name in entries:
        return entries[name]
    path = Path(name)
    if store is not None and name and (store.folder / "models" / name / CARD).is_file():
        path = store.folder / "models" / name  # read_card says what is wrong with it
    if path.exists():
        folder = path if path.is_dir() else path.parent
        if path.is_file() and path.suffix != ".safetensors":
            folder = path  # read_card says what is wrong with it
        return ModelEntry(folder.name, folder, read_card(folder), False)
    near = difflib.get_close_matches(name, entries, n=1)
    if not near and path.parent.is_dir() and len(path.parts) > 1:
        there = [str(card.parent) for card in sorted(path.parent.glob(f"*/{CARD}"))]
        near = difflib.get_close_matches(str(path), there, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(entries)}."
    raise InputError(f"There is no model called {name!r}; {hint}")


def current_model(store: ProjectStore) -> ModelEntry | None:
    """Return the model in use; by default a bundled one that knows the classes."""
    used = _used(store)
    if used is not None:
        return used
    fitting = (e for e in list_models(store) if set(e.card.classes) <= set(store.classes.names))
    return next(fitting, None)


def _used(store: ProjectStore) -> ModelEntry | None:
    """Return the model that was chosen, reading no other card; None if it is gone."""
    name = store.get("current_model")
    bundled = bundled_packages()
    folder = bundled.get(name, store.folder / "models" / str(name))
    if name is None or not (folder / CARD).is_file():
        return None
    with suppress(InputError):
        return ModelEntry(name, folder, read_card(folder), name in bundled)
    return None


def kept_calibration(store: ProjectStore, entry: ModelEntry) -> Calibration | None:
    """Return what is kept in a project for a model as it is now.

    Raises
    ------
    InputError
        The file is damaged.
    """
    return read_calibration(store.folder, entry.name, hash_weights(entry.folder))


def use_model(session: Session, name: str) -> ModelEntry:
    """Make a model the current one; every older one stays and can be used again."""
    store = session.store
    entry = find_model(name, store)
    before = current_model(store)
    if before is not None and before.name != entry.name:
        store.set("model_history", [*store.get("model_history", []), before.name])
    _set_current(session, entry)
    return entry


def promote_if_better(session: Session, run: Run) -> bool:
    """Use the model a run made if the images held back say that it is better.

    Returns
    -------
    bool
        Whether it is in use now; with less evidence than that, nothing changes.
    """
    is_better = judge(run.before, run.after).judgement is Judgement.BETTER
    if run.state is not RunState.COMPLETED or not is_better:
        return False
    use_model(session, run.new_model)
    return True


def previous_model(store: ProjectStore) -> str | None:
    """Return the model that was in use before this one."""
    known = {entry.name for entry in list_models(store)}
    history = [name for name in store.get("model_history", []) if name in known]
    return history[-1] if history else None


def go_back(session: Session) -> ModelEntry:
    """Use the model that was in use before.

    Raises
    ------
    InputError
        There is none.
    """
    name = previous_model(session.store)
    if name is None:
        raise InputError("No other model was in use before this one.")
    history = list(session.store.get("model_history", []))
    while history and history.pop() != name:
        pass
    session.store.set("model_history", history)
    entry = find_model(name, session.store)
    _set_current(session, entry)
    return entry


def _set_current(session: Session, entry: ModelEntry) -> None:
    store = session.store
    store.set("current_model", entry.name)
    weights = hash_weights(entry.folder)
    for sample in store.samples():
        prediction = store.prediction(sample.id, entry.name, weights)
        score = prediction.score if prediction is not None else None
        if score != sample.score:
            session.put_sample(replace(sample, score=score))
    session.events.model_changed.emit(entry.name)


def rounds_of(entry: ModelEntry, store: ProjectStore | None = None) -> list[ModelEntry]:
    """Return the other rounds of a model, from old to new: base, base-r1, base-r2, ..."""
    stem = _stem(entry.name)
    return [e for e in list_models(store) if _stem(e.name) == stem and e.folder != entry.folder]


def _stem(name: str) -> str:
    return re.sub(r"-r\d+$", "", name)


def next_model_name(store: ProjectStore, base: str) -> str:
    """Return a free name for a model fine-tuned from ``base``: base-r1, base-r2, ..."""
    stem = _stem(base)
    taken = {entry.name for entry in list_models(store)} | {r.new_model for r in store.runs()}
    number = 1
    while f"{stem}-r{number}" in taken or (store.folder / "models" / f"{stem}-r{number}").exists():
        number += 1
    return f"{stem}-r{number}"
