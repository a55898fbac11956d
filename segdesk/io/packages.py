"""Model packages: a folder with ``weights.safetensors`` and ``card.json``.

No torch here: the window lists and copies models without loading them.
"""

from __future__ import annotations

import hashlib
import shutil
from functools import cache
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path

from segdesk.core.card import ModelCard
from segdesk.core.errors import InputError
from segdesk.io.atomic import atomic_folder

WEIGHTS = "weights.safetensors"
CARD = "card.json"
REHEARSAL = "rehearsal"

#: First bytes of a pickle (protocol 2 and up) and of a zip, torch's own format.
_PICKLE_MAGIC = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


def bundled_packages() -> dict[str, Path]:
    """Return the folders of installed trained models by name."""
    return dict(_bundled())


@cache
def _bundled() -> dict[str, Path]:
    # Every prediction that comes in asks which model is in use, and looking through what
    # is installed takes longer than a window may stand still.
    found: dict[str, Path] = {}
    for point in entry_points(group="segdesk.pretrained"):
        root = Path(str(files(point.value)))
        for folder in sorted(root.iterdir()):
            if (folder / CARD).is_file():
                found[folder.name] = folder
    return found


def read_card(folder: Path) -> ModelCard:
    """Read a package's card.

    Raises
    ------
    InputError
        The folder is no package, or its card or weights cannot be used.
    """
    card_path, weights = folder / CARD, folder / WEIGHTS
    if not card_path.is_file():
        reject_pickle(folder)
        raise InputError(f"{folder} is not a model: it holds no {CARD}.")
    try:
        text = card_path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{card_path} cannot be read.") from None
    card = ModelCard.parse(text, str(card_path))
    if not weights.is_file():
        raise InputError(f"The model {card.name!r} has no {WEIGHTS} in {folder}.")
    reject_pickle(weights)
    return card


def reject_pickle(path: Path) -> None:
    """Refuse a file that would run code when it is loaded.

    Raises
    ------
    InputError
        The file is a pickle or torch's zipped pickle.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(_PICKLE_MAGIC):
        raise InputError(
            f"{path} is a pickle, which can run any program when it is opened; save the weights "
            "with safetensors.torch.save_file, for SegDesk loads .safetensors only."
        )


def hash_weights(folder: Path) -> str:
    """Return the SHA-256 of a package's weights, hexadecimal.

    Raises
    ------
    InputError
        They are not there any more, or cannot be read.
    """
    try:
        with (folder / WEIGHTS).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        raise InputError(
            f"The weights of the model in {folder} cannot be read; put them back, or choose "
            "another model."
        ) from None


def install_package(source: Path, target: Path) -> ModelCard:
    """Copy a checked package to ``target``; all of it or nothing.

    Raises
    ------
    InputError
        ``source`` is not a package, or ``target`` exists.
    """
    card = read_card(source)
    if target.exists():
        raise InputError(f"There is a model at {target} already.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target) as folder:
        for name in (WEIGHTS, CARD):
            shutil.copyfile(source / name, folder / name)
        if (source / REHEARSAL).is_dir():
            shutil.copytree(source / REHEARSAL, folder / REHEARSAL)
    return card
