"""What a run begins with: the network, and the labelled planes by what they are for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from segdesk.config.training import Recipe, TrainingConfig
from segdesk.core.card import ModelCard
from segdesk.core.errors import InputError
from segdesk.core.manifest import RunManifest
from segdesk.core.sample import Split
from segdesk.io.packages import REHEARSAL
from segdesk.nn.pretrained import load_encoder_weights
from segdesk.nn.quick import add_quick_head
from segdesk.nn.registry import build_network, find_architecture, resolve_options
from segdesk.nn.weights import LoadedModel, adapt_outputs, load_model
from segdesk.training.dataset import Item, load_rehearsal, load_sample
from segdesk.training.settings import QUICK_NEEDS_A_MODEL

#: Every n-th rehearsal image is kept back to see what is still remembered.
KEEP_BACK = 4

Say = Callable[[str], None]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class RunData:
    """The labelled planes of a run, by what they are for."""

    train: list[Item]
    validation: list[Item]
    rehearsal: list[Item]
    remembered: list[Item]


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes
    ----------
    base
        The model whose weights it takes over; None for one that begins at random.
    model
        The network that will learn, and the card of the model it will be.
    """

    base: LoadedModel | None
    model: LoadedModel

    @property
    def is_known(self) -> bool:
        """Whether the model it starts from can be judged on the project's labels."""
        return self.base is not None and self.base.card.classes == self.model.card.classes


def load_start(
    manifest: RunManifest, config: TrainingConfig, say: Say, progress: Progress
) -> Start:
    """Load or build the network a run starts from.

    Raises
    ------
    InputError
        The model cannot be loaded or built, or does not suit the recipe.
    """
    if manifest.base_folder is None:
        if config.recipe is Recipe.QUICK:
            raise InputError(QUICK_NEEDS_A_MODEL)
        return Start(None, _new_network(manifest, say, progress))
    base = load_model(manifest.base_folder)
    named = base.card.model_copy(update={"classes": config.named(base.card.classes)})
    base = replace(base, card=named)
    card = base.card.model_copy(
        update={
            "name": manifest.new_model,
            "classes": manifest.classes,
            "colors": manifest.colors,
            "base_model": base.card.name,
            "score": {},
            "description": f"{base.card.name}, fine-tuned.",
        }
    )
    if config.recipe is Recipe.SCRATCH:
        card = card.model_copy(
            update={
                "training_data": (),
                "trained_ids": (),
                "has_quick_head": False,
                "base_model": "",
                "description": f"As {base.card.name}, trained from random weights.",
            }
        )
        return Start(None, LoadedModel(build_network(card), card, ""))
    network = adapt_outputs(base, card)
    if config.recipe is Recipe.QUICK:
        add_quick_head(network, card, base.spec)
        card = card.model_copy(update={"has_quick_head": True})
    return Start(base, LoadedModel(network, card, base.weights_sha256))


def _new_network(manifest: RunManifest, say: Say, progress: Progress) -> LoadedModel:
    spec = find_architecture(manifest.architecture)
    card = ModelCard(
        name=manifest.new_model,
        architecture=manifest.architecture,
        options=resolve_options(spec, manifest.variant, manifest.options),
        classes=manifest.classes,
        colors=manifest.colors,
        channels=manifest.channels,
        weights_sha256="",
        parameters=0,
    )
    network = build_network(card)
    if manifest.encoder_weights:
        encoder = network.get_submodule("encoder")
        million = 10**6
        say(
            load_encoder_weights(
                encoder,
                manifest.encoder_weights,
                lambda done, total, text: progress(
                    done // million, total // million, f"{text} (MB)"
                ),
            )
        )
    return LoadedModel(network, card, "")


def load_data(
    manifest: RunManifest, config: TrainingConfig, start: Start, say: Say, progress: Progress
) -> RunData:
    """Load the labelled planes.

    Raises
    ------
    InputError
        There is nothing to learn from, or a file cannot be used.
    """
    card = start.model.card
    planes: dict[Split, list[Item]] = {Split.TRAIN: [], Split.VALIDATION: []}
    samples = manifest.samples
    for done, sample in enumerate(samples):
        progress(done, len(samples), "Reading images")
        planes[sample.split] += load_sample(sample, card, config.corrected_weight)
    if not planes[Split.TRAIN]:
        raise InputError(
            "There is nothing to learn from yet: correct or accept at least one image that "
            "is not held back for validation."
        )
    if not planes[Split.VALIDATION]:
        say(
            "No corrected image is held back for validation, so the model after the last "
            "step is kept and no score can be given."
        )
    rehearsal, remembered = load_known(manifest, start, say)
    if start.model.spec.needs_labels:
        _warn_of_missing_classes(card, [*planes[Split.TRAIN], *rehearsal], say)
    return RunData(planes[Split.TRAIN], planes[Split.VALIDATION], rehearsal, remembered)


def load_known(manifest: RunManifest, start: Start, say: Say) -> tuple[list[Item], list[Item]]:
    """Return the images the model came with: those to repeat, and those kept back.

    None where they mean something else in this project.
    """
    base, card = start.base, start.model.card
    if base is None or manifest.base_folder is None:
        return [], []
    lost = [name for name in base.card.classes if name not in card.classes]
    folder = manifest.base_folder / REHEARSAL
    if lost:
        # Images on which only some of the classes have a meaning are no test of
        # memory, and as replay they would teach that the rest is background.
        say(
            f"This project has no {', '.join(lost)}, so the images that "
            f"{base.card.name} learnt from are not repeated."
        )
        return [], []
    old = load_rehearsal(folder, card, base.card) if folder.is_dir() else []
    if len(old) < KEEP_BACK:
        return old, []
    repeated = [item for number, item in enumerate(old) if number % KEEP_BACK]
    return repeated, old[::KEEP_BACK]


def _warn_of_missing_classes(card: ModelCard, items: list[Item], say: Say) -> None:
    seen = {int(v) for item in items for v in np.unique(item.labels[item.weights > 0])}
    missing = [name for value, name in enumerate(card.classes) if value not in seen]
    if missing:
        say(
            f"No pixel of {' or '.join(missing)} is painted or accepted, so the model will "
            "unlearn it: paint some of it too, or accept an image."
        )
