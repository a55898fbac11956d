"""The classes of a project: what a label value means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from segdesk.core.errors import InputError

#: Label value of pixels that belong to no class (void, ignore, not labelled).
UNLABELLED: Final = 255

#: Okabe and Ito's palette, told apart by colour-blind readers too (Nature
#: Methods 8, 441, 2011), without black and yellow, which vanish on images.
PALETTE: Final = (
    "#56b4e9",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#0072b2",
    "#d55e00",
    "#f0e442",
)
BACKGROUND_COLOR: Final = "#000000"


@dataclass(frozen=True, slots=True)
class ClassDef:
    """One class: its label value, its name and its colour (``#rrggbb``)."""

    id: int
    name: str
    color: str


@dataclass(frozen=True, slots=True)
class ClassMap:
    """The ordered classes of a project; label value *i* is the i-th class.

    Raises
    ------
    InputError
        Fewer than two classes, more than 254, or two of the same name.
    """

    classes: tuple[ClassDef, ...]

    def __post_init__(self) -> None:
        names = [c.name for c in self.classes]
        if len(names) < 2:
            raise InputError(
                "A project needs at least two classes, the first of them the background; "
                "for example: background,nucleus."
            )
        if len(names) > UNLABELLED - 1:
            raise InputError(f"A project holds at most {UNLABELLED - 1} classes.")
        if len(set(names)) != len(names) or not all(n.strip() for n in names):
            raise InputError("Every class needs a name of its own.")
        if [c.id for c in self.classes] != list(range(len(names))):
            raise InputError("Class ids must count up from 0.")

    @classmethod
    def from_names(cls, names: tuple[str, ...] | list[str]) -> ClassMap:
        """Make a map with default colours; the first class is the background."""
        colors = [BACKGROUND_COLOR] + [PALETTE[i % len(PALETTE)] for i in range(len(names))]
        stripped = [name.strip() for name in names]
        return cls(
            tuple(ClassDef(i, n, c) for i, (n, c) in enumerate(zip(stripped, colors, strict=False)))
        )

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """The names in the order of their label values."""
        return tuple(c.name for c in self.classes)
