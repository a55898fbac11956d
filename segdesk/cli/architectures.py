"""What there is to know of the installed architectures, remembered between commands.

Size and cost are computed from the networks themselves, which takes torch and many seconds.
The answers are kept in the user's cache folder for as long as the code that they were computed
from stays the same; read from there, they need no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache, cached_property
from importlib.metadata import EntryPoint, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import segdesk
from segdesk.app.settings import cache_folder
from segdesk.config.model import Activation, HeadKind, NewModelConfig, Variant
from segdesk.core.errors import InputError
from segdesk.io.atomic import atomic_write_text

if TYPE_CHECKING:
    from segdesk.nn.spec import ModelSpec

#: What is known of one architecture, as `models list --json` reports it.
Report = dict[str, Any]

#: What the numbers of an architecture are computed for.
CHANNELS, CLASSES = 3, 2

#: Beside the sizes a new model comes in: the paper's, with the paper's own head.
PUBLISHED = "published"

#: So many packages' answers are kept; those of older versions go first.
KEPT = 200

#: Libraries that the figures depend on.
_LIBRARIES = ("torch", "torchvision", "timm")


class Catalogue:
    """What is known of every installed architecture, by its name.

    What is not remembered is computed when it is asked for; :meth:`keep` remembers it.
    """

    def __init__(self) -> None:
        self._file = cache_folder() / "architectures.json"
        self._others = _read(self._file)
        self._reports: dict[str, dict[str, Report]] = {}
        self._unknown: dict[str, EntryPoint] = {}
        self._has_new = False
        for point in entry_points(group="segdesk.models"):
            key = _fingerprint(point)
            if key in self._others:
                self._reports[key] = self._others.pop(key)
            else:
                self._unknown[key] = point

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to compute."""
        return not self._unknown

    def __getitem__(self, name: str) -> Report:
        for reports in self._reports.values():
            if name in reports:
                return reports[name]
        for key, specs in self._specs.items():
            if key in self._unknown and any(spec.name == name for spec in specs):
                self._reports[key] = {spec.name: _report(spec) for spec in specs}
                del self._unknown[key]
                self._has_new = True
                return self._reports[key][name]
        raise KeyError(name)

    def __contains__(self, name: str) -> bool:
        # Torch is loaded only for a name that is not remembered.
        return any(name in known for known in self._reports.values()) or name in self.names()

    def names(self) -> list[str]:
        """Return every name, the oldest architecture first."""
        remembered = [r for reports in self._reports.values() for r in reports.values()]
        years = {report["name"]: report["year"] for report in remembered}
        years |= {spec.name: spec.year for specs in self._specs.values() for spec in specs}
        return sorted(years, key=lambda name: (years[name], name))

    def keep(self) -> None:
        """Remember what was computed; where that cannot be written, it is computed again."""
        if self._has_new:
            kept = list((self._others | self._reports).items())[-KEPT:]
            with suppress(InputError):
                atomic_write_text(self._file, json.dumps(dict(kept)))

    @cached_property
    def _specs(self) -> dict[str, list[ModelSpec]]:
        if not self._unknown:
            return {}
        from segdesk.nn.registry import load_specs

        return {key: load_specs(point) for key, point in self._unknown.items()}


def _read(file: Path) -> dict[str, dict[str, Report]]:
    with suppress(OSError, ValueError):
        kept = json.loads(file.read_text("utf-8"))
        if isinstance(kept, dict):
            return kept
    return {}


def _fingerprint(point: EntryPoint) -> str:
    """Return a text that changes when anything changes that the figures are computed from."""
    package = point.module.partition(".")[0]
    release = point.dist.version if point.dist is not None else ""
    return _digest([_own_code(), point.value, release, _code_of(package)])


@cache
def _own_code() -> str:
    folder = Path(segdesk.__file__).parent
    files = [Path(__file__), *_python_files(folder / "nn"), *_python_files(folder / "config")]
    return _digest([*map(version, _LIBRARIES), *_contents(files)])


@cache
def _code_of(package: str) -> str:
    """Return a digest of a package's code, which is not imported for that."""
    found = find_spec(package)
    if found is None:
        return ""  # loading it says what is wrong
    folders = found.submodule_search_locations
    if folders is not None:
        return _digest(_contents(f for folder in folders for f in _python_files(Path(folder))))
    return _digest(_contents([Path(found.origin)] if found.origin else []))


def _python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def _contents(files: Iterable[Path]) -> Iterator[str]:
    for file in files:
        with suppress(OSError):
            yield hashlib.sha256(file.read_bytes()).hexdigest()


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _report(spec: ModelSpec) -> Report:
    from segdesk.nn.profile import profile
    from segdesk.nn.registry import resolve_options

    new = NewModelConfig()
    head = {"head": str(new.head), "activation": str(new.activation)}
    options = {str(v): resolve_options(spec, v, head) for v in Variant} | {PUBLISHED: spec.options}
    profiles = {form: profile(spec, o, CHANNELS, CLASSES) for form, o in options.items()}
    report = {
        "kind": "architecture",
        "name": spec.name,
        "title": spec.title,
        "year": spec.year,
        "reference": spec.reference,
        "parameters": {f: p.parameters for f, p in profiles.items()},
        "multiply_adds_per_megapixel": {f: p.multiply_adds for f, p in profiles.items()},
        "activation_bytes_per_megapixel": {f: p.activation_bytes for f, p in profiles.items()},
        "computed_for": {
            "channels": CHANNELS,
            "classes": CLASSES,
            "side": profiles[PUBLISHED].side,
            "head": {form: o.get("head") for form, o in options.items()},
        },
        "stride": spec.stride,
        "min_size": spec.min_size,
        "options": options,
        "classes": "any",
        "heads": [str(head) for head in HeadKind],
        "activations": [str(activation) for activation in Activation],
        "needs_labels": spec.needs_labels,
        "is_exportable": spec.is_exportable,
        "without_gradient": list(spec.idle),
        "license": spec.license,
        "encoder": profiles[PUBLISHED].encoder,
        "deviations": list(spec.deviations),
    }
    # As it will be read from the file, where a tuple is a list.
    kept: Report = json.loads(json.dumps(report, default=str))
    return kept
