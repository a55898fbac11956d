"""What every architecture promises, whoever wrote it: one check a promise.

Each of :data:`CHECKS` raises ``AssertionError`` where the promise is broken. The author of
a model package calls :func:`check_everything` in a test; SegDesk does the same for its own.
"""

from __future__ import annotations

import ast
import fnmatch
import math
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec, resolve_name
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segdesk.nn.heads import Activation, HeadKind
from segdesk.nn.spec import Initialisation, ModelSpec

#: What a file of an architecture may import of Python's own.
_STANDARD = frozenset(
    ("__future__", "collections", "dataclasses", "enum", "functools", "itertools", "math", "typing")
)


def check_everything(spec: ModelSpec, folder: Path) -> None:
    """Make every check; files are written to ``folder``."""
    for check in CHECKS.values():
        check(spec, folder)


def build(spec: ModelSpec, channels: int = 3, classes: int = 2, **options: Any) -> Any:
    """Build the small variant with fixed weights."""
    torch.manual_seed(0)
    return spec.build(channels, classes, **{**spec.options, **spec.small, **options})


def side(spec: ModelSpec, at_least: int = 32) -> int:
    """Return the smallest side the architecture takes, in pixels."""
    return math.ceil(max(spec.min_size, at_least) / spec.stride) * spec.stride


def image(spec: ModelSpec, channels: int = 3, *, wider: int = 1, count: int = 2) -> Tensor:
    """Return a batch that is one stride wider than high."""
    torch.manual_seed(1)
    height = side(spec)
    return torch.randn(count, channels, height, height + wider * spec.stride)


def check_shapes(spec: ModelSpec, _folder: Path) -> None:
    """Check that class maps have the image's size, for any channels, classes and aspect."""
    for channels, classes in ((1, 2), (5, 4)):
        network = build(spec, channels, classes).eval()
        x = image(spec, channels)
        with torch.inference_mode():
            maps = network(x)
        assert maps.shape == (2, classes, *x.shape[-2:])
        assert maps.dtype == torch.float32
        assert torch.isfinite(maps).all()
        smallest = side(spec, at_least=1)
        with torch.inference_mode():
            maps = network(torch.randn(1, channels, smallest, smallest))
        assert maps.shape == (1, classes, smallest, smallest), "less than its min_size will do?"


def check_parts(spec: ModelSpec, _folder: Path) -> None:
    """Check that encoder, decoder and head hold every parameter once."""
    network = build(spec)
    parts = [
        id(p)
        for part in ("encoder", "decoder", "head")
        for p in network.get_submodule(part).parameters()
    ]
    assert sorted(parts) == sorted(id(p) for p in network.parameters())
    assert list(network.get_submodule("encoder").parameters())
    assert list(network.get_submodule("head").parameters())


def check_gradients(spec: ModelSpec, _folder: Path) -> None:
    """Check that learning reaches every parameter but those the spec names, with each head."""
    for kind in (HeadKind.A, HeadKind.C, HeadKind.D):
        _check_gradients(spec, build(spec, head=str(kind)).train())


def _check_gradients(spec: ModelSpec, network: Any) -> None:
    x = image(spec)
    network(x[:1, ..., : x.shape[-2]])  # one image a batch must do
    torch.manual_seed(2)
    # Each pixel weighs differently, so that no batch or layer norm cancels it all.
    total = sum(
        weight * (maps * torch.randn_like(maps)).sum() for weight, maps in network.training_maps(x)
    )
    if not spec.needs_labels:
        total = total + sum(network.own_loss(x, turn) for turn in range(spec.turns))
    total.backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    undeclared = [n for n in silent if not any(fnmatch.fnmatch(n, i) for i in spec.idle)]
    assert undeclared == [], f"no gradient reaches {undeclared[:5]} ({len(undeclared)} in all)"
    for pattern in spec.idle:
        assert fnmatch.filter(silent, pattern), f"{pattern} is declared idle and learns"


def check_modes(spec: ModelSpec, _folder: Path) -> None:
    """Check that evaluation is deterministic, and training random where the spec says so."""
    network = build(spec)
    x = image(spec)
    with torch.no_grad():
        network.train()
        torch.manual_seed(3)
        first = network(x)
        again = network(x)
        network.eval()
        assert torch.equal(network(x), network(x))
    assert torch.equal(first, again) is not spec.has_dropout


def check_round_trip(spec: ModelSpec, folder: Path) -> None:
    """Check that weights survive safetensors and give the same maps."""
    network = build(spec).eval()
    file = folder / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, file)
    torch.manual_seed(99)
    other = spec.build(3, 2, **{**spec.options, **spec.small}).eval()
    x = image(spec, count=1)
    with torch.inference_mode():
        expected = network(x)
        other.load_state_dict(load_file(file), strict=True)
        assert torch.equal(other(x), expected)


def check_initialisation(spec: ModelSpec, _folder: Path) -> None:
    """Check that the decoder's convolutions, or else the head's, are drawn as the spec says."""
    ratios = _spreads(build(spec).get_submodule("decoder"), spec.initialisation)
    # Many classes: only many numbers tell how they were drawn.
    ratios = ratios or _spreads(build(spec, classes=64).get_submodule("head"), spec.initialisation)
    assert ratios, "neither decoder nor head has a convolution that is large enough to tell"
    assert all(0.8 < ratio < 1.2 for ratio in ratios), ratios


def _spreads(part: nn.Module, initialisation: Initialisation) -> list[float]:
    """Return the deviation of each convolution's weights as a share of the expected one.

    Left out are those with few weights, and transposed ones that enlarge.
    """
    ratios = []
    for module in part.modules():
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            continue
        weight, is_backwards = module.weight.detach(), isinstance(module, nn.ConvTranspose2d)
        if weight.numel() < 512 or (is_backwards and set(module.stride) != {1}):
            continue
        fan_in = weight[:, 0].numel() if is_backwards else weight[0].numel()
        expected = {
            Initialisation.HE: math.sqrt(2 / fan_in),
            Initialisation.NORMAL_001: 0.01,
            Initialisation.TRUNCATED_NORMAL: 0.02,
            Initialisation.TORCH: math.sqrt(1 / (3 * fan_in)),
        }[initialisation]
        ratios.append(float(weight.std()) / expected)
    return ratios


def check_export(spec: ModelSpec, _folder: Path) -> None:
    """Check that ``torch.export`` gives a program with the same result, or the spec says why."""
    if not spec.is_exportable:
        assert any("export" in text for text in spec.deviations), "say why in the deviations"
        return
    network = build(spec).eval()
    x = image(spec, count=1)
    program = torch.export.export(network, (x,), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), network(x), rtol=1e-4, atol=1e-5)


def check_heads(spec: ModelSpec, _folder: Path) -> None:
    """Check that it takes every head with every activation, and learns through it."""
    for kind in HeadKind:
        check_head(spec, kind)


def check_head(spec: ModelSpec, kind: HeadKind) -> None:
    """Check that it takes a head with every activation, and learns through it."""
    x = image(spec, wider=0)
    plain = None
    for activation in Activation:
        network = build(spec, classes=8, head=str(kind), activation=str(activation)).train()
        for part in ("encoder", "decoder"):
            network.get_submodule(part).requires_grad_(False)
        torch.manual_seed(3)  # dropout drops the same each time
        for weight in network.get_submodule("head").parameters():
            if weight.requires_grad and weight.ndim > 1:
                nn.init.kaiming_normal_(weight)  # near 0, some activations change nothing
        maps = network(x)
        assert maps.shape == (2, 8, *x.shape[-2:])
        assert torch.isfinite(maps).all()
        (maps * torch.randn_like(maps)).sum().backward()
        grads = [p.grad for p in network.get_submodule("head").parameters()]
        assert any(g is not None and bool(g.any()) for g in grads), f"{kind} {activation}"
        names = {name.rpartition(".")[2] for name, _ in network.named_modules()}
        assert ("attention" in names) is kind.has_cbam
        assert ("maps" in names) is (kind is not HeadKind.A)
        # With the same weights, only an activation can make another result; head A has none.
        plain = maps.detach() if plain is None else plain
        is_same = kind is HeadKind.A or activation is Activation.NONE
        assert torch.equal(maps, plain) is is_same, f"{kind} {activation}"


def check_imports(spec: ModelSpec, _folder: Path) -> None:
    """Check that its file, and those of its own package that it imports, import nothing else.

    But for torch and ``segdesk.nn``, and a few modules of Python's own.
    """
    own = spec.build.__module__.partition(".")[0]
    waiting, seen = [spec.build.__module__], set[str]()
    while waiting:
        module = waiting.pop()
        found = find_spec(module)
        if module in seen or found is None or found.origin is None:
            continue
        seen.add(module)
        for name in _imported(Path(found.origin), found.parent or ""):
            if name.partition(".")[0] == own:
                waiting.append(name)
                continue
            is_known = name.partition(".")[0] in _STANDARD | {"torch"}
            is_ours = f"{name}.".startswith("segdesk.nn.")
            assert is_known or is_ours, f"{found.origin} imports {name}"


def _imported(file: Path, package: str) -> Iterator[str]:
    """Yield what a file imports; for names out of a package of files, also as files of it."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            yield base
            beside = {f.name for f in iter_modules(getattr(import_module(base), "__path__", ()))}
            yield from (f"{base}.{alias.name}" for alias in node.names if alias.name in beside)


def check_description(spec: ModelSpec, _folder: Path) -> None:
    """Check that its spec says what a user must know."""
    assert {"head", "activation"} <= set(spec.options)
    assert set(spec.small) <= set(spec.options)
    assert spec.title
    assert spec.reference
    assert 1950 < spec.year < 2100
    assert all(text.endswith(".") for text in spec.deviations)


#: Every promise by its name.
CHECKS: dict[str, Callable[[ModelSpec, Path], None]] = {
    "shapes": check_shapes,
    "parts": check_parts,
    "gradients": check_gradients,
    "modes": check_modes,
    "round trip": check_round_trip,
    "initialisation": check_initialisation,
    "export": check_export,
    "heads": check_heads,
    "imports": check_imports,
    "description": check_description,
}
