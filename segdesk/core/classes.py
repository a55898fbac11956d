"""The classes of a project: what a label value means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from segdesk.core.errors import InputError

#: Label value of pixels that belong to no class (void, ignore, not labelled).
UNLABELLED: Final = 255

#: Class colours: first those of Okabe and Ito that colour-blind readers tell apart
#: (Nature Methods 8, 441, 2011) and that are not the orange and red of the
#: uncertainty, then twelve more for projects of many classes.
PALETTE: Final = (
    "#56b4e9", "#009e73", "#cc79a7", "#f0e442", "#0072b2", "#8c6bb1", "#66c2a5", "#b15928",
    "#a6cee3", "#b2df8a", "#e78ac3", "#6a3d9a", "#33a02c", "#1f78b4", "#bc80bd", "#ccebc5",
    "#80b1d3", "#bebada", "#8dd3c7", "#7f7f00",
)  # fmt: skip
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
