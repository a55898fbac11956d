"""The head experiment: architectures x heads x activations on Kvasir and ISIC.

    python tests/benchmarks/heads.py --data FOLDER --out FOLDER [--steps N]

Repeats the published comparison of heads A to D (docs/heads.md) at 224 x 224. Every
cell has the same seeds, images, order of crops, augmentation, loss and number of
steps; only the head differs. ``FOLDER`` holds ``kvasir224`` and ``isic224``, each with
``train`` and ``val``. A cell is a line of ``cells.jsonl``; a run that was broken off
goes on where it was. Without a graphics card the small variants of U-Net and FCN are
compared at width 8, a cell in a process for each core, with a budget that two cores get
through in an hour; with one, all four architectures as published. ``--table-only``
writes table and pictures of the cells that are there.

Two things ask why a head begins as it does. ``--gain`` and ``--gate-bias`` change how
attention begins, for every cell of a run; ``--gradients`` only computes what each head
lets through of its features and the length of the gradient of the first batch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor, nn

from segdesk.config.model import Activation, HeadKind, Variant
from segdesk.nn.device import pick_device, place
from segdesk.nn.heads import SpatialAttention
from segdesk.nn.losses import dice_cross_entropy
from segdesk.nn.registry import find_architecture, resolve_options
from segdesk.training.metrics import confusion, summarize

DATASETS = ("kvasir224", "isic224")
ARCHITECTURES = {
    "cpu": ("unet", "fcn-8s"),
    "cuda": ("unet", "fcn-8s", "deeplab-v3plus", "fcbformer"),
}
NAMES = ("background", "target")
BINS = 50
#: What two cores get through in an hour.
STEPS = 80
HEADS = [
    (kind, activation)
    for kind in HeadKind
    for activation in (Activation if kind is not HeadKind.A else (Activation.NONE,))
]


@dataclass(frozen=True)
class Images:
    """Images (N, 3, H, W), uint8, and masks (N, H, W), uint8 0 or 1."""

    images: Tensor
    masks: Tensor


@lru_cache
def load(folder: Path) -> Images:
    """Read a split into memory."""
    images, masks = [], []
    for path in sorted((folder / "images").iterdir()):
        mask = next((folder / "masks").glob(f"{path.stem}.*"))
        images.append(np.asarray(Image.open(path).convert("RGB")))
        masks.append(np.asarray(Image.open(mask).convert("L")) > 127)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return Images(pixels, torch.from_numpy(np.stack(masks).astype(np.uint8)))


def batches(data: Images, steps: int, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches, flipped and turned at random, in an order that only ``seed`` decides."""
    random = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for _ in range(steps):
        while len(order) < size:
            order += torch.randperm(len(data.images), generator=random).tolist()
        chosen, order = order[:size], order[size:]
        x, y = data.images[chosen], data.masks[chosen]
        turns, flip = (int(torch.randint(n, (1,), generator=random)) for n in (4, 2))
        x, y = x.rot90(turns, (2, 3)), y.rot90(turns, (1, 2))
        yield (x.flip(3), y.flip(2)) if flip else (x, y)


def standardise(x: Tensor, device: torch.device) -> Tensor:
    """Give a network what SegDesk's cards say by default: mean 0.5, deviation 0.25."""
    return ((x.float() / 255 - 0.5) / 0.25).to(device, memory_format=torch.channels_last)


def loss_of(maps: Tensor, masks: Tensor) -> Tensor:
    """Return what every cell makes small: Dice and cross entropy, all pixels alike."""
    labels = masks.to(maps.device)
    return dice_cross_entropy(maps.float(), labels, torch.ones_like(labels, dtype=torch.float32))


def train(network: nn.Module, data: Images, steps: int, seed: int, device: torch.device) -> None:
    """Learn for ``steps`` batches of four; AdamW, warm-up and cosine."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1e-3, total_steps=steps, pct_start=0.1
    )
    network.train()
    for x, y in batches(data, steps, 4, seed):
        # The same precision for every cell. Half of it pays on a graphics card; a CPU
        # without AMX takes twice as long.
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            maps = network(standardise(x, device))
        loss = loss_of(maps, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()


def judge(network: nn.Module, data: Images, device: torch.device) -> dict[str, Any]:
    """Return the mean Dice over images and how probable right and wrong pixels were."""
    network.eval()
    matrices = []
    counts = {"right": np.zeros(BINS, np.int64), "wrong": np.zeros(BINS, np.int64)}
    with torch.inference_mode():
        for start in range(0, len(data.images), 10):
            x, truth = data.images[start : start + 10], data.masks[start : start + 10].numpy()
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                maps = network(standardise(x, device))
            target = torch.softmax(maps.float(), 1)[:, 1].cpu().numpy()
            found = (target > 0.5).astype(np.uint8)
            for key, pixels in (("right", found == truth), ("wrong", found != truth)):
                counts[key] += np.histogram(target[pixels], BINS, (0, 1))[0]
            matrices += [confusion(t, f, 2) for t, f in zip(truth, found, strict=True)]
    scores = summarize(matrices, NAMES, [str(i) for i in range(len(matrices))])
    return {"dice": scores["dice"], **{key: value.tolist() for key, value in counts.items()}}


def enlarge(_: nn.Module, given: tuple[Tensor], *, gain: float) -> tuple[Tensor]:
    """Multiply what goes into an output layer: attention begins by making it smaller."""
    return (given[0] * gain,)


def make_network(cell: dict[str, Any], device: torch.device) -> nn.Module:
    """Draw the network of a cell; the same for the same seed."""
    spec = find_architecture(cell["architecture"])
    variant = Variant.PAPER if device.type == "cuda" else Variant.SMALL
    options: dict[str, Any] = {"head": cell["head"], "activation": cell["activation"]}
    if device.type == "cpu":
        options["width"] = 8
    torch.manual_seed(cell["seed"])
    network = place(spec.build(3, 2, **resolve_options(spec, variant, options)), device)
    for branch in network.get_submodule("head").branches:
        branch.output.register_forward_pre_hook(partial(enlarge, gain=cell["gain"]))
    for part in network.modules():
        if isinstance(part, SpatialAttention):
            nn.init.constant_(part.norm.bias, cell["gate_bias"])
    return network


def first_gradient(cell: dict[str, Any], folder: Path, device: torch.device) -> dict[str, float]:
    """Return what of its features' norm a head lets through, and lengths of gradients.

    Of the first batch, while learning; for several branches of a head, of the last one.
    """
    network = make_network(cell, device).train()
    norms = {}
    for branch in network.get_submodule("head").branches:
        for key, part in (("in", branch), ("out", branch.output)):
            part.register_forward_pre_hook(
                lambda _, given, key=key: norms.update({key: float(given[0].detach().norm())})
            )
    x, y = next(batches(load(folder / cell["dataset"] / "train"), 1, 4, cell["seed"]))
    loss_of(network(standardise(x, device)), y).backward()

    def length(part: nn.Module) -> float:
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        return float(nn.utils.get_total_norm(gradients))

    return {
        "let_through": norms["out"] / norms["in"] / cell["gain"],
        "encoder": length(network.get_submodule("encoder")),
        "decoder": length(network.get_submodule("decoder")),
        "all": length(network),
    }


def show_gradients(cells: list[dict[str, Any]], folder: Path, device: torch.device) -> None:
    """Print, for each head, the means over seeds of :func:`first_gradient`."""
    for (dataset, architecture, head, activation), seeds in group(cells).items():
        found = [first_gradient(cell, folder, device) for cell in seeds]
        means = {key: round(float(np.mean([one[key] for one in found])), 3) for key in found[0]}
        sys.stdout.write(f"{dataset}, {architecture}, {head}, {activation}: {means}\n")


def run_cell(cell: dict[str, Any], folder: Path, device: torch.device) -> dict[str, Any]:
    """Train and judge one cell."""
    began = time.monotonic()
    data = {split: load(folder / cell["dataset"] / split) for split in ("train", "val")}
    network = make_network(cell, device)
    train(network, data["train"], cell["steps"], cell["seed"], device)
    report = judge(network, data["val"], device)
    return {**cell, **report, "seconds": round(time.monotonic() - began, 1)}


def run_cells(
    cells: list[dict[str, Any]], folder: Path, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Yield the cells as they end: one after the other on a graphics card, else one a core.

    A thread each: two cores with one cell each do more than both with one cell.
    """
    if device.type != "cpu":
        yield from (run_cell(cell, folder, device) for cell in cells)
        return
    with ProcessPoolExecutor(
        psutil.cpu_count(logical=False),
        multiprocessing.get_context("spawn"),
        initializer=partial(torch.set_num_threads, 1),
    ) as pool:
        for ended in as_completed([pool.submit(run_cell, cell, folder, device) for cell in cells]):
            yield ended.result()


def main() -> None:
    """Run every cell that is not there yet, then write table and pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1))
    parser.add_argument("--datasets", nargs="+", default=DATASETS)
    parser.add_argument("--architectures", nargs="+")
    parser.add_argument("--heads", nargs="+", default=list(HeadKind))
    parser.add_argument("--activations", nargs="+", default=list(Activation))
    parser.add_argument(
        "--gain", type=float, default=1.0, help="multiplies what goes into the output layers"
    )
    parser.add_argument(
        "--gate-bias", type=float, default=0.0, help="where the spatial gates of C and D begin"
    )
    parser.add_argument("--gradients", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--table-only", action="store_true")
    arguments = parser.parse_args()
    device = pick_device(arguments.device).device
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "cells.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    # Older lines do not tell where the gates began.
    done = [{"gate_bias": 0.0, **json.loads(line)} for line in lines]
    keys = ("dataset", "architecture", "head", "activation", "seed", "steps", "gain", "gate_bias")
    known = {tuple(cell[key] for key in keys) for cell in done}
    architectures = arguments.architectures or ARCHITECTURES[device.type]
    # Seeds outermost: what is there after half the time is one whole seed.
    heads = [
        (kind, activation)
        for kind, activation in HEADS
        if kind in arguments.heads and activation in arguments.activations
    ]
    budget = (arguments.steps, arguments.gain, arguments.gate_bias)
    plan = [
        (dataset, architecture, str(head), str(activation), seed, *budget)
        for seed, dataset, architecture, (head, activation) in itertools.product(
            arguments.seeds, arguments.datasets, architectures, heads
        )
    ]
    if arguments.gradients:
        cells = [dict(zip(keys, values, strict=True)) for values in plan]
        show_gradients(cells, arguments.data, device)
        return
    missing = [] if arguments.table_only else [values for values in plan if values not in known]
    for cell in run_cells(
        [dict(zip(keys, values, strict=True)) for values in missing], arguments.data, device
    ):
        done.append(cell)
        with file.open("a") as end:
            end.write(json.dumps(cell) + "\n")
        name = ", ".join(str(cell[key]) for key in keys)
        sys.stdout.write(f"{name}: Dice {cell['dice']:.4f}, {cell['seconds']} s\n")
        sys.stdout.flush()
    done = [c for c in done if (c["steps"], c["gain"], c["gate_bias"]) == budget]
    (arguments.out / "table.md").write_text(table(done), "utf-8")
    for dataset, architecture in sorted({(c["dataset"], c["architecture"]) for c in done}):
        chosen = [c for c in done if (c["dataset"], c["architecture"]) == (dataset, architecture)]
        (arguments.out / f"{dataset}-{architecture}.svg").write_text(picture(chosen), "utf-8")


def group(cells: list[dict[str, Any]]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Put the seeds of a cell together."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for cell in cells:
        key = tuple(cell[k] for k in ("dataset", "architecture", "head", "activation"))
        found.setdefault(key, []).append(cell)
    return found


def near_half(cells: list[dict[str, Any]], key: str) -> float:
    """Return the share of right or wrong pixels with a probability of 0.2 to 0.8."""
    counts = np.sum([cell[key] for cell in cells], axis=0)
    middle = counts[round(0.2 * BINS) : round(0.8 * BINS)].sum()
    return float(middle / max(1, counts.sum()))


def table(cells: list[dict[str, Any]]) -> str:
    """Return a Markdown table: Dice per cell, mean and of each seed."""
    numbers = sorted({cell["seed"] for cell in cells})
    columns = ["data", "architecture", "head", "activation", "Dice, mean",
               *(f"seed {number}" for number in numbers),
               "wrong pixels at 0.2 to 0.8", "right pixels there"]  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for (dataset, architecture, head, activation), seeds in sorted(group(cells).items()):
        dice = {cell["seed"]: cell["dice"] for cell in seeds}
        lines.append(
            f"| {dataset} | {architecture} | {head} | {activation} | "
            + f"{np.mean(list(dice.values())):.3f} | "
            + " | ".join(f"{dice[n]:.3f}" if n in dice else "" for n in numbers)
            + f" | {near_half(seeds, 'wrong'):.0%} | {near_half(seeds, 'right'):.0%} |"
        )
    return "\n".join(lines) + "\n"


def picture(cells: list[dict[str, Any]]) -> str:
    """Return an SVG: per cell, how probable wrongly (red) and rightly labelled pixels were."""
    wide, high, gap = 150, 70, 26
    parts = []
    columns = len(Activation)
    for (_, _, head, activation), seeds in sorted(group(cells).items()):
        column, row = list(Activation).index(Activation(activation)), "ABCD".index(head)
        x, y = 10 + column * (wide + 16), 20 + row * (high + gap)
        dice = np.mean([cell["dice"] for cell in seeds])
        parts.append(
            f'<text x="{x}" y="{y - 5}">{head}, {activation}: Dice {dice:.3f}</text>'
            f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" fill="#f4f4f5"/>'
        )
        for key, color in (("right", "#2f9e6b"), ("wrong", "#d9483b")):
            counts = np.sum([cell[key] for cell in seeds], axis=0)
            share = np.sqrt(counts / max(1, counts.sum()))  # the ends tower over the middle
            points = [
                f"{x + (i + 0.5) * wide / BINS:.1f},{y + high - s * high:.1f}"
                for i, s in enumerate(share)
            ]
            parts.append(f'<polyline points="{" ".join(points)}" stroke="{color}" fill="none"/>')
    width, height = 20 + columns * (wide + 16), 20 + 4 * (high + gap)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="11">{"".join(parts)}'
        f'<text x="10" y="{height - 4}">across: probability of the target, 0 to 1; up: square '
        "root of the share of pixels; red: wrong, green: right</text></svg>\n"
    )


if __name__ == "__main__":
    main()
