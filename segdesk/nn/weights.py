"""Loading and saving model packages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from segdesk.core.card import ModelCard
from segdesk.core.errors import InputError
from segdesk.io.atomic import atomic_write_bytes, atomic_write_text
from segdesk.io.packages import CARD, WEIGHTS, hash_weights, read_card
from segdesk.nn.heads import HeadKind
from segdesk.nn.outline import Shapes, build_outline, outline, shapes_of, without_head
from segdesk.nn.registry import UNBUILDABLE, architectures, build_network, find_architecture
from segdesk.nn.spec import ModelSpec

#: Up to so many classes are tried to say what weights are for.
MOST_CLASSES = 32

#: Share of a file's tensors that must be an architecture's for the file to be taken for its
#: weights, and how much of the architecture they must be at least.
LIKE = 0.8
LEAST = 0.1


@dataclass(frozen=True)
class LoadedModel:
    """A network with its weights, its card and the hash of its weights."""

    network: nn.Module
    card: ModelCard
    weights_sha256: str

    @property
    def spec(self) -> ModelSpec:
        """What is known of the architecture: the sizes it takes, among others."""
        return find_architecture(self.card.architecture)


def load_model(folder: Path) -> LoadedModel:
    """Load a package strictly, on the CPU, in evaluation mode.

    Raises
    ------
    InputError
        Not a package, a pickle, a damaged file, or weights of another network.
    """
    card = read_card(folder)
    try:
        network = build_network(card)
    except InputError as error:
        raise InputError(f"{error}{_whose(folder / WEIGHTS, card)}") from None
    load_weights(network, folder / WEIGHTS, card)
    network.eval()
    found = hash_weights(folder)
    if card.weights_sha256 not in ("", found):
        raise InputError(
            f"The weights of {card.name!r} ({folder / WEIGHTS}) are not those its card was written "
            "for: the file was damaged or exchanged; copy the model again."
        )
    return LoadedModel(network, card, found)


def load_weights(network: nn.Module, path: Path, card: ModelCard) -> None:
    """Copy the tensors of a safetensors file into ``network``, all of them.

    Raises
    ------
    InputError
        The file is damaged, or its tensors are not this network's; the installed
        architecture they fit is named.
    """
    name = card.name
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"The weights of {name!r} ({path}) are damaged ({error}); copy the model again."
        ) from None
    wanted = network.state_dict()
    missing = sorted(set(wanted) - set(tensors))
    extra = sorted(set(tensors) - set(wanted))
    odd = sorted(k for k in wanted if k in tensors and wanted[k].shape != tensors[k].shape)
    if missing or extra or odd:
        parts = [
            f"{len(keys)} {what} (first: {keys[0]})"
            for keys, what in ((missing, "missing"), (extra, "unknown"), (odd, "of another shape"))
            if keys
        ]
        raise InputError(
            f"The weights of {name!r} do not fit the network its card describes: tensors "
            + ", ".join(parts)
            + "."
            + (_other_classes(tensors, card) or _what_fits(tensors, card, shapes_of(wanted)))
        )
    network.load_state_dict(tensors, strict=True)


def _other_classes(tensors: dict[str, Tensor], card: ModelCard) -> str:
    """Say how many classes the weights are for, if nothing else is wrong with the card."""
    shapes, spec = shapes_of(tensors), find_architecture(card.architecture)
    options = {**spec.options, **card.options}
    for classes in range(2, MOST_CLASSES + 1):
        network = build_outline(spec, card.channels, classes, options)
        found = shapes_of(network.state_dict())
        if found == shapes:
            return (
                f" The weights tell {classes} classes apart and the card names "
                f"{len(card.classes)}: correct the card's classes and colors."
            )
        if without_head(found).keys() != without_head(shapes).keys():
            break  # it is another network altogether
    return ""


def _what_fits(tensors: dict[str, Tensor], card: ModelCard, own: Shapes) -> str:
    """Say which installed architecture has these tensors, exactly or nearly.

    Parameters
    ----------
    own
        What the network has that the card describes.
    """
    shapes, size = shapes_of(tensors), (card.channels, len(card.classes))
    return (
        _exactly(shapes, *size)
        or _nearly_own(shapes, own, card)
        or _most_like(shapes, *size, card.architecture)
        or " The weights fit no architecture that is installed here; choose another model."
    )


def _whose(path: Path, card: ModelCard) -> str:
    """Say whose weights a file holds whose card describes no network, if that can be told."""
    # Whatever else is wrong with the card, a network tells two classes apart at least.
    size = card.channels, max(2, len(card.classes))
    try:
        shapes = shapes_of(load_file(path))
        return _exactly(shapes, *size) or _most_like(shapes, *size, card.architecture)
    except (SafetensorError, OSError, *UNBUILDABLE):
        return ""


def _bodies(channels: int, classes: int) -> Iterator[tuple[str, str, Shapes]]:
    """Yield each installed architecture's name, variant, and what its encoder and decoder hold."""
    for name in architectures():
        for variant in ("paper", "small"):
            yield name, variant, without_head(outline(name, variant, HeadKind.A, channels, classes))


def _exactly(shapes: Shapes, channels: int, classes: int) -> str:
    """Say which installed architecture has these tensors, if one has just these."""
    for name, variant, body in _bodies(channels, classes):
        # A head changes nothing but the head: most networks need not be built with each.
        if body != without_head(shapes):
            continue
        for head in HeadKind:
            if outline(name, variant, head, channels, classes) == shapes:
                return (
                    f" The weights are those of {name} ({variant}, head {head}): correct the "
                    "card, or choose the model they belong to."
                )
    return ""


def _nearly_own(shapes: Shapes, own: Shapes, card: ModelCard) -> str:
    """Say how many tensors lack or are too many, if the others are the network's own."""
    common = shapes.items() & own.items()
    missing, extra = len(own) - len(common), len(shapes) - len(common)
    has_odd = any(shapes[name] != own[name] for name in shapes.keys() & own.keys())
    if has_odd or len(common) < max(LIKE * len(shapes), LEAST * len(own)):
        return ""
    parts = [f"but {missing} {_is(missing)} missing"] if missing else []
    parts += [f"and {extra} {_is(extra)} too many"] if extra else []
    return (
        f" The weights are those of {card.architecture}, {' '.join(parts)}: copy the model again."
    )


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _most_like(shapes: Shapes, channels: int, classes: int, own: str) -> str:
    """Say which installed architecture names its tensors so, whatever their sizes."""
    found = without_head(shapes).keys()

    def likeness(name: str, body: Shapes) -> tuple[float, float, bool]:
        common = len(body.keys() & found)
        # Of equals the one that is more nearly whole, then the card's own.
        whole = common / max(1, len(body.keys() | found))
        return common / max(1, len(found)), whole, name == own

    found_like = ((likeness(name, body), name) for name, _, body in _bodies(channels, classes))
    (share, whole, _), name = max(found_like, key=lambda one: one[0])
    if share < LIKE or whole < LEAST:
        return ""
    return (
        f" By their names the weights are those of {name}, of another size, or not all of them: "
        "correct the card, or choose the model they belong to."
    )


def save_model(folder: Path, network: nn.Module, card: ModelCard) -> ModelCard:
    """Write weights and card; returns the card with hash and parameter count."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder / WEIGHTS, network.state_dict())
    card = card.model_copy(
        update={
            "weights_sha256": hash_weights(folder),
            "parameters": sum(p.numel() for p in network.parameters()),
        }
    )
    atomic_write_text(folder / CARD, card.model_dump_json(indent=2) + "\n")
    return card


def write_weights(
    path: Path, weights: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write the weights as safetensors; the old file stays until the new is whole."""
    state = {k: v.detach().to("cpu").contiguous() for k, v in weights.items()}
    # Through bytes and not save_file, so that a full disk is an OSError we can explain.
    atomic_write_bytes(path, save(state, metadata))


def adapt_outputs(loaded: LoadedModel, card: ModelCard) -> nn.Module:
    """Build the network of ``card`` with the weights of ``loaded``.

    Encoder and decoder are taken over. An output map is taken over when a class
    of the same name exists; the first class, the background, always is. Others
    start untrained.
    """
    network = build_network(card)
    if loaded.card.classes == card.classes:
        network.load_state_dict(loaded.network.state_dict())
        return network
    old, new = loaded.network.state_dict(), network.state_dict()
    source = {name: i for i, name in enumerate(loaded.card.classes)}
    pairs = [(k, source.get(n, 0)) for k, n in enumerate(card.classes) if n in source or k == 0]
    for key, value in old.items():
        before, is_output, rest = key.partition(".output.")
        # Maps of a model that learnt without labels are no classes yet.
        if not is_output or not loaded.spec.needs_labels:
            if key in new and new[key].shape == value.shape:
                new[key] = value
        elif not rest.startswith("maps."):
            # One layer for all maps: they are its first dimension.
            for target, origin in pairs:
                new[key][target] = value[origin]
        else:
            _, number, part = rest.split(".", 2)
            for target, origin in pairs:
                if int(number) == origin:
                    new[f"{before}.output.maps.{target}.{part}"] = value
    network.load_state_dict(new)
    return network


def count_parameters(network: nn.Module) -> int:
    """Return the number of trainable numbers."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def seed_everything(seed: int) -> torch.Generator:
    """Seed torch and return a generator of its own for the data."""
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)
