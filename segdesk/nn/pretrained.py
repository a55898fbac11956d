"""Weights from elsewhere for an encoder: a file of the user's, or timm's own.

Read top-down: fetch or read a file, find the names and shapes under which its tensors
are the encoder's, and only when all are there, copy them.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from segdesk.core.errors import InputError
from segdesk.io.packages import WEIGHTS
from segdesk.nn.download import Progress, Transfer, TransferError
from segdesk.nn.encoders import import_timm
from segdesk.nn.outline import build_outline, undrawn
from segdesk.nn.registry import architectures

Tensors = Mapping[str, Tensor]

#: The source that is no file.
DOWNLOAD = "download"

#: What training programs put around a state dict, the averaged weights first, as timm has it.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
#: What they, and networks that hold the encoder as a part, put in front of its names.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.", "body.")
#: Parts behind the features, which an encoder may lack.
_CLASSIFIER = (
    "fc.", "head.", "head_dist.", "fc_norm.", "classifier.", "aux_classifier.", "pre_logits.",
)  # fmt: skip
#: Buffers that can be computed, or that nothing is computed from.
_BUFFERS = ("num_batches_tracked", "relative_position_index", "attn_mask")
#: torchvision's names of VGG's fully connected layers, and timm's of the same as convolutions.
_TORCHVISION_VGG = {"classifier.0.": "pre_logits.fc1.", "classifier.3.": "pre_logits.fc2."}
#: Encoders by which a file that does not fit is recognised.
_WELL_KNOWN = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn",
    "vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224",
    "vit_large_patch16_224", "swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224",
    "swin_base_patch4_window7_224", "pvt_v2_b0", "pvt_v2_b1", "pvt_v2_b2", "pvt_v2_b3",
    "pvt_v2_b4", "pvt_v2_b5",
)  # fmt: skip


def load_encoder_weights(
    encoder: nn.Module, source: str, progress: Progress = lambda done, total, text: None
) -> str:
    """Copy pre-trained weights into ``encoder``, all of them or none.

    Parameters
    ----------
    encoder
        The ``encoder`` of a network, on the CPU. ``timm_name``, where it has one, says
        which published network it is a part of.
    source
        ``download``, or a file (.safetensors, .pth, .pt, .bin) with weights under
        timm's, torchvision's or SegDesk's own names, or the folder of a model package.
    progress
        Called about twice a second while downloading.

    Returns
    -------
    str
        A sentence on what was taken from where, and what was fitted.

    Raises
    ------
    InputError
        There is no such file, or it cannot be read, or it does not fit; or nothing can
        be downloaded. The encoder has not changed.
    """
    name = _timm_name(encoder)
    if source.strip().lower() == DOWNLOAD:
        path, origin = _download(encoder, name, progress)
    else:
        path = Path(source).expanduser()
        origin = str(path)
    tensors = _read(path)
    match = _best_match(tensors, encoder)
    if not match.is_complete:
        raise InputError(_explain(match, tensors, name, origin))
    # Not strict, for old files lack `num_batches_tracked`; all the rest is there.
    match.module.load_state_dict(match.tensors, strict=False)
    left = len(encoder.state_dict()) - len(match.module.state_dict())
    if left:
        match.notes.append(f"the encoder's {left} other tensors start from random weights")
    taken = f"Took {len(match.tensors)} tensors of {name or 'the encoder'} from {origin}"
    return "; ".join((taken, *match.notes)) + "."


def _timm_name(encoder: nn.Module) -> str | None:
    names = (getattr(part, "timm_name", None) for part in encoder.modules())
    return next((name for name in names if name and import_timm().is_model(name)), None)


@cache
def _published(name: str) -> nn.Module:
    """Return timm's whole network, on the meta device: names and shapes, no numbers."""
    with torch.device("meta"), undrawn():
        network: nn.Module = import_timm().create_model(name, pretrained=False)
    return network


def _download(encoder: nn.Module, name: str | None, progress: Progress) -> tuple[Path, str]:
    """Return timm's weights of the network ``name``, from the cache or the internet.

    Returns
    -------
    path, origin
        The file in the cache of ``huggingface_hub``, and what to call it.
    """
    config = import_timm().get_pretrained_cfg(name) if name else None
    if name is None or config is None or not config.hf_hub_id:
        raise InputError(
            "There are no weights to download for this encoder; give a file with weights of it, "
            "or nothing to start from random weights."
        )
    # Before anything is downloaded: the published network's tensors, without numbers.
    match = _best_match(_published(name).state_dict(), encoder)
    if not match.is_complete:
        first = [*match.odd, *match.missing, *match.extra][0]
        raise InputError(
            f"There are no weights to download for this encoder, for it differs from the published "
            f"{name} (first: {first}); build it in the paper's size, or give a file with weights "
            "of it, or nothing to start from random weights."
        )
    repository, _, revision = str(config.hf_hub_id).partition("@")
    file = config.hf_hub_filename or "model.safetensors"
    transfer = Transfer(repository, revision or None, file)
    try:
        return transfer.wait(progress, f"Downloading {name}"), repository
    except TransferError as error:
        raise InputError(
            f"The weights of {name} could not be downloaded ({error}): connect to the internet "
            "once and try again, or give a file with them, or nothing to start from random weights."
        ) from None


# Reading ----------------------------------------------------------------------


def require_source(source: str) -> None:
    """Refuse a file with an encoder's weights that is not there or cannot be read (InputError)."""
    if source.strip().lower() not in ("", DOWNLOAD):
        _read(Path(source.strip()).expanduser())


def _require_file(path: Path) -> None:
    path = path.absolute()
    if not path.is_file() and not (path / WEIGHTS).is_file():
        if import_timm().is_model(path.name):
            raise InputError(
                f"{path.name} names a network, and there is no file of that name here; "
                f"{DOWNLOAD!r} takes the published weights of the encoder that the architecture "
                "has, or that its option names."
            )
        raise InputError(
            f"There is no file {path} to take the encoder's weights from; give one that exists, "
            f"or {DOWNLOAD!r}, or nothing to start from random weights."
        )


def _read(path: Path) -> Tensors:
    """Return the tensors of a file by name.

    Raises
    ------
    InputError
        It is not there, damaged, holds no tensors, or could run a program.
    """
    if path.is_dir():
        path = path / WEIGHTS
    _require_file(path)
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        # timm's training program keeps its arguments beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickles; what is refused is said below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  a damaged file can make its reader raise anything
        if _wants_code(path, error):
            raise InputError(
                f"{path} holds Python objects beside its tensors, which could run any program when "
                "they are read; save the weights alone, with "
                "safetensors.torch.save_file(model.state_dict(), ...), and give that file."
            ) from None
        raise InputError(
            f"{path} is damaged or no file of weights; copy or download it again."
        ) from None
    tensors = _unwrap(content)
    if not tensors:
        raise InputError(
            f"{path} holds no weights by name; give a file with the state dict of an encoder."
        )
    return tensors


def _wants_code(path: Path, error: Exception) -> bool:
    """Say whether a file was refused for what it holds, and not for being broken."""
    if "TorchScript" in str(error):
        return True
    if not isinstance(error, UnpicklingError):
        return False
    with path.open("rb") as file:
        is_pickle = file.read(4).startswith((b"\x80", b"PK\x03\x04"))
    return is_pickle or "GLOBAL" in str(error)


def _unwrap(content: object) -> dict[str, Tensor]:
    """Return the state dict in what a training program saved."""
    if not isinstance(content, dict):
        return {}
    for name in _WRAPPERS:
        if isinstance(content.get(name), dict):
            return _unwrap(content[name])
    return {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}


# Fitting ----------------------------------------------------------------------


@dataclass
class _Match:
    """The tensors of a file that are ``module``'s, under its names, and what is wrong."""

    module: nn.Module
    tensors: dict[str, Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        return self.faults == (0, 0)

    @property
    def faults(self) -> tuple[int, int]:
        """The fewer the better; what is missing counts before what is too much."""
        return len(self.missing) + len(self.odd), len(self.extra)


def _best_match(tensors: Tensors, encoder: nn.Module, *, needs_classifier: bool = True) -> _Match:
    """Try every reading of a file's names and return the one with the fewest faults."""
    name = _timm_name(encoder)
    # Of the very network that the encoder was cut from, what was cut off is no surprise.
    spare = set(_published(name).state_dict()) if name else set()
    best: _Match | None = None
    for module in _targets(encoder):
        for variant in _without_prefixes(tensors):
            for form in _forms(variant, module, spare):
                match = _fit(form, module, spare, needs_classifier)
                resized = sum(k in variant and variant[k].shape != form[k].shape for k in form)
                if resized:
                    match.notes.append(f"{resized} tensors were interpolated to its sizes")
                if match.is_complete:
                    return match
                if best is None or match.faults < best.faults:
                    best = match
    assert best is not None
    return best


def _targets(encoder: nn.Module) -> list[nn.Module]:
    """Return what a file may hold: the whole encoder, or the timm network in it."""
    parts = [part for part in encoder.modules() if getattr(part, "timm_name", None)]
    bodies = [body for part in parts if isinstance(body := getattr(part, "body", None), nn.Module)]
    return [encoder, *bodies]


def _without_prefixes(tensors: Tensors) -> Iterator[Tensors]:
    """Yield the tensors under every prefix, without it; names elsewhere are left out."""
    prefixes = [""]
    for prefix in prefixes:
        under = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        yield under
        prefixes += [prefix + p for p in _PREFIXES if any(k.startswith(p) for k in under)]


def _forms(tensors: Tensors, module: nn.Module, spare: set[str]) -> Iterator[Tensors]:
    """Yield the tensors under the names they have, and as timm reads official files."""
    if "classifier.0.weight" in tensors and "features.0.weight" in tensors:
        tensors = {_rename_vgg(k): v for k, v in tensors.items()}
    yield tensors
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return
    own = module.state_dict()
    used = {k: v for k, v in tensors.items() if k in own or k not in spare}
    try:
        yield {k: v for k, v in convert(used, module).items() if isinstance(v, Tensor)}
    except Exception:  # noqa: BLE001  it falls over names of another network, which fit no better
        return


def _rename_vgg(key: str) -> str:
    for old, new in _TORCHVISION_VGG.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def _fit(tensors: Tensors, module: nn.Module, spare: set[str], needs_classifier: bool) -> _Match:
    match = _Match(module)
    wanted = module.state_dict()
    optional = () if needs_classifier else _CLASSIFIER
    convolutions = (n for n, m in module.named_modules() if isinstance(m, nn.Conv2d))
    first = f"{next(convolutions, '')}.weight"
    for key, own in wanted.items():
        if key in tensors:
            value, note = _adapt(tensors[key], own, key, module, is_first=key == first)
            if value.shape == own.shape:
                match.tensors[key] = value
                match.notes.extend([note] if note else [])
            else:
                match.odd.append(f"{key}, {_size(value)} and not {_size(own)}")
        elif not key.endswith("num_batches_tracked") and not key.startswith(optional):
            match.missing.append(key)
    known = {*wanted, *spare}
    match.extra.extend(
        key
        for key in tensors
        if key not in known and not key.startswith(_CLASSIFIER) and not key.endswith(_BUFFERS)
    )
    return match


def _adapt(
    value: Tensor, own: Tensor, key: str, module: nn.Module, *, is_first: bool
) -> tuple[Tensor, str]:
    """Bring a tensor into the shape of ``own`` where that has a meaning; say how."""
    if value.shape == own.shape:
        return value, ""
    if is_first and value.shape[0] == own.shape[0] and value.shape[2:] == own.shape[2:]:
        before, after = value.shape[1], own.shape[1]
        note = f"the first layer was fitted from {before} to {after} channels"
        return fit_channels(value, after), note
    if value.ndim == 2 and own.ndim == 4 and value.shape[0] == own.shape[0]:
        # A fully connected layer on a map of the kernel's size is that convolution.
        is_same = value.numel() == own.numel()
        return (value.reshape(own.shape), "") if is_same else (value, "")
    parent, _, leaf = key.rpartition(".")
    if leaf == "pos_embed":
        fitted = _fit_positions(value, own, module.get_submodule(parent))
        return fitted, "its position embedding was interpolated to another grid"
    return value, ""


def _size(tensor: Tensor) -> str:
    return "x".join(str(n) for n in tensor.shape) or "a number"


def fit_channels(weight: Tensor, channels: int) -> Tensor:
    """Fit a convolution to images of other channels; a grey image gets the same response.

    Parameters
    ----------
    weight
        Shape (O, I, kH, kW).
    channels
        Channels of the images, C.

    Returns
    -------
    Tensor
        Shape (O, C, kH, kW). Channel ``c`` is taken from ``c % I``, divided by how often
        that is taken; with fewer channels than before, ``c`` is the sum of all ``i``
        with ``i % C == c``. For C = 1 that is the sum over the channels.
    """
    before = weight.shape[1]
    if channels < before:
        return torch.stack([weight[:, c::channels].float().sum(1) for c in range(channels)], 1)
    sources = [c % before for c in range(channels)]
    shares = torch.tensor([1 / sources.count(s) for s in sources], device=weight.device)
    return weight[:, sources].float() * shares[:, None, None]


def _fit_positions(value: Tensor, own: Tensor, module: nn.Module) -> Tensor:
    """Interpolate a ViT's position embedding, (1, prefix + grid, C), to the grid of ``module``."""
    grid = getattr(getattr(module, "patch_embed", None), "grid_size", None)
    if grid is None or value.ndim != 3 or own.ndim != 3 or value.shape[2] != own.shape[2]:
        return value
    import_timm()
    from timm.layers.pos_embed import resample_abs_pos_embed

    prefix = own.shape[1] - grid[0] * grid[1]
    before = value.shape[1] - prefix
    if before < 1 or math.isqrt(before) ** 2 != before:
        return value
    fitted: Tensor = resample_abs_pos_embed(value, list(grid), num_prefix_tokens=prefix)
    return fitted


# Explaining -------------------------------------------------------------------


def _explain(match: _Match, tensors: Tensors, name: str | None, origin: str) -> str:
    """Say what is wrong with a file, and what it is instead."""
    parts = [
        f"{len(keys)} {what} (first: {keys[0]})"
        for keys, what in (
            (match.missing, "missing"),
            (match.odd, "of another shape"),
            (match.extra, "unknown"),
        )
        if keys
    ]
    here = name or "this encoder"
    found = _recognise(tensors)
    advice = f"give a file with weights of {here}, or nothing to start from random weights"
    if found and found == name and match.odd:
        advice = (
            "a small model's encoder is narrower than the published one: build it with "
            "variant=paper, or give its encoder the published width"
        )
    elif found and found != name:
        advice = f"these look like the weights of {found}, so {advice}"
    return f"{origin} does not fit {here}: tensors {', '.join(parts)}; {advice}."


def _recognise(tensors: Tensors) -> str | None:
    """Return the encoder whose weights these are, if it is a known one."""
    for name, module in _candidates():
        if _best_match(tensors, module, needs_classifier=False).is_complete:
            return name
    return None


def _candidates() -> Iterator[tuple[str, nn.Module]]:
    for name in _WELL_KNOWN:
        if import_timm().is_model(name):
            yield name, _published(name)
    for spec in architectures().values():
        for options in (spec.options, {**spec.options, **spec.small}):
            try:
                encoder = build_outline(spec, 3, 2, options).get_submodule("encoder")
            except Exception:  # noqa: BLE001  not everyone's network builds without numbers
                continue
            yield _timm_name(encoder) or f"the encoder of {spec.title}", encoder
