"""``segdesk trust``: whether a model's probabilities and its uncertainty can be believed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import typer

from segdesk.cli.console import meter, say, show, show_json
from segdesk.cli.labelled import labelled
from segdesk.config.inference import InferenceConfig
from segdesk.core.calibration import Calibration
from segdesk.core.errors import InputError
from segdesk.core.prediction import COMPARABLE, ONE_PASS, UncertaintyKind
from segdesk.inference.findings import percent
from segdesk.io.atomic import atomic_write_text
from segdesk.io.packages import hash_weights

Report = dict[str, Any]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("trust")(trust)


def trust(
    project: Path | None = typer.Argument(None, help="A project: its validation images."),
    model: str | None = typer.Option(None, "--model", help="Name or folder of a model."),
    images: Path | None = typer.Option(None, "--images", help="Folder of images."),
    masks: Path | None = typer.Option(None, "--masks", help="Folder of their true masks."),
    against: str | None = typer.Option(None, "--against", help="A second model to compare with."),
    band: str = typer.Option("0.2,0.8", "--band", help="Probabilities that count as near 0.5."),
    picture: Path | None = typer.Option(None, "--picture", help="Draw it too: an SVG file."),
    kinds: str = typer.Option(
        ",".join(ONE_PASS),
        "--kinds",
        help="Uncertainties to compare, of which --keep keeps the best: "
        f"{', '.join(COMPARABLE)}. The last two ask the model 8 times.",
    ),
    keep: bool = typer.Option(
        False, "--keep", help="Keep the temperature and the best uncertainty for predictions."
    ),
    device: str = typer.Option("auto", "--device", help="auto, cpu, cuda or mps."),
    as_json: bool = typer.Option(False, "--json", help="Report as JSON."),
) -> None:
    """Say whether a model's probabilities and its uncertainty can be believed."""
    from segdesk.session import trusting
    from segdesk.training.trust import find_out

    config = InferenceConfig.from_user({"device": device})
    limits = _read_band(band)
    wanted = _read_kinds(kinds)
    if picture is not None and picture.suffix.lower() != ".svg":
        raise InputError(f"The picture is an SVG; give {picture.name} a name that ends in .svg.")
    if (images is None) is not (masks is None):
        raise InputError("Give --images FOLDER and --masks FOLDER together.")
    if keep and (project is None or images is not None or against is not None):
        raise InputError(
            "--keep is for one model in a project, and what its validation images say: leave "
            "--images, --masks and --against out."
        )
    kept: Calibration | None = None
    reports: list[Report] = []
    with ExitStack() as stack:
        names = [model] if against is None else [model, against]
        found = [
            stack.enter_context(labelled(project, n, images, masks, read_only=not keep))
            for n in names
        ]
        _require_same_classes(
            [entry.name for entry, _, _ in found], [e.card.classes for e, _, _ in found]
        )
        for entry, samples, folder in found:
            with meter(f"Judging {entry.name}") as progress:
                findings = find_out(entry.folder, samples, config, wanted, progress)
            reports.append({"model": entry.name, **findings.as_dict(limits)})
            if keep and folder is not None:
                kept = trusting.keep(folder, entry.name, hash_weights(entry.folder), findings)
    if picture is not None:
        atomic_write_text(picture, draw(reports))
        say(f"The picture is in {picture}.")
    if as_json:
        told = {} if kept is None else {"kept": kept.model_dump(mode="json")}
        show_json({**reports[0], "against": reports[1] if against is not None else None, **told})
    elif against is None:
        show("\n".join([*tell(reports[0]), *([] if kept is None else [tell_kept(kept)])]))
    else:
        show("\n".join(compare(reports)))


def _read_band(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = float("nan")
    if not 0 <= low < 0.5 < high <= 1:
        raise InputError(
            f"The band {text!r} is not two probabilities with 0.5 between them; give one such as "
            "--band 0.2,0.8."
        )
    return low, high


def _read_kinds(text: str) -> list[UncertaintyKind]:
    """Read names with commas between them; each kind once, in the order they are compared in."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in COMPARABLE:
            raise InputError(
                f"The uncertainty {name!r} is none that can be compared; choose of "
                f"{', '.join(COMPARABLE)}."
            )
    return [kind for kind in COMPARABLE if kind in names]


def _require_same_classes(names: Sequence[str], classes: Sequence[tuple[str, ...]]) -> None:
    if classes[0] != classes[-1]:
        raise InputError(
            f"The model {names[0]!r} knows {', '.join(classes[0])}, and {names[-1]!r} knows "
            f"{', '.join(classes[-1])}; they cannot be compared."
        )


def tell(report: Report) -> list[str]:
    """Describe one model in sentences."""
    images = f"{report['images']} image" + ("s" if report["images"] != 1 else "")
    lines = [
        f"{report['model']} on {images}, {report['pixels']:,} labelled pixels: "
        f"{percent(report['accuracy'])} of them are right."
    ]
    lines += _warn(report)
    if not report["wrong"]:
        return [*lines, "No pixel is wrong, so there is nothing to say on where wrong ones lie."]
    return [*lines, *_tell_band(report), *_tell_uncertainty(report), *_tell_calibration(report)]


def tell_kept(kept: Calibration) -> str:
    """Say what was kept and what follows."""
    kind = "" if kept.kind is None else f" and show the {kept.kind} as uncertainty"
    return (
        f"Kept: predictions of {kept.model} in this project use temperature "
        f"{kept.temperature:.2f} from now on{kind}."
    )


def _warn(report: Report) -> list[str]:
    if not report["learnt"]:
        return []
    return [
        f"{report['model']} learnt from {report['learnt']} of the {report['images']} images: the "
        "figures flatter it."
    ]


def _band_of(report: Report) -> str:
    return f"between {report['band']['low']:g} and {report['band']['high']:g}"


def _tell_band(report: Report) -> list[str]:
    band, histograms = report["band"], report["histograms"]
    of = histograms["of"]
    what = f"probability of {of}" if of else "probability of their true class"
    lines = [
        "Where the wrong pixels are",
        f"  {percent(band['wrong'])} of the wrong pixels have a {what} {_band_of(report)}; "
        f"{percent(band['right'])} of the right ones do.",
    ]
    for name, counts in histograms["classes"].items():
        wrong, pixels = sum(counts["wrong"]), sum(counts["wrong"]) + sum(counts["right"])
        if not pixels:
            lines.append(f"  {name}: no pixel of these images is labelled so.")
            continue
        lines.append(
            f"  {name}: {percent(wrong / pixels)} of its pixels are wrong"
            + (f"; {percent(counts['wrong_within'])} of those lie there." if wrong else ".")
        )
    return lines


def _tell_uncertainty(report: Report) -> list[str]:
    best = report["best"]
    lines = ["Whether the uncertainty finds them"]
    if best is None:
        return [*lines, "  No pixel is right, so that cannot be said."]
    scores = report["uncertainty"][best]
    lines += [
        f"  The most uncertain {percent(report['most_uncertain'])} of the pixels hold "
        f"{percent(scores['share_of_errors'])} of the wrong ones; of the other pixels, "
        f"{percent(scores['risk_without'])} are wrong, and not {percent(1 - report['accuracy'])}.",
        f"  Of a wrong and a right pixel, the wrong one is the more uncertain in "
        f"{percent(scores['auroc'])} of all pairs (AUROC; 50 % is chance).",
    ]
    if scores["auroc"] < 0.5:
        lines.append(
            "  That is worse than chance: the model is sure of what it gets wrong here, and its "
            "uncertainty misleads."
        )
    told = report["uncertainty"]
    if report["histograms"]["of"] and set(told) == set(ONE_PASS):
        return [*lines, "  With two classes, margin and entropy put the pixels in the same order."]
    if len(told) == 1:
        return lines
    others = (f"{kind} {percent(s['auroc'])}" for kind, s in told.items())
    return [*lines, f"  {best} finds them best ({', '.join(others)})."]


def _tell_calibration(report: Report) -> list[str]:
    calibration = report["calibration"]
    temperature, after = calibration["temperature"], calibration["ece_after"]
    gap = _points(calibration["ece_before"])
    lines = [
        "Whether a probability means what it says",
        f"  On average, {gap} lie between a probability and how often it is right (calibration "
        "error).",
    ]
    if abs(temperature - 1) < 0.05:
        lines.append(f"  The model is as sure as it may be (temperature {temperature:.2f}).")
    else:
        how = "surer than it may be" if temperature > 1 else "less sure than it may be"
        limit = ", as far as was looked" if calibration["is_at_limit"] else ""
        lines.append(
            f"  The model is {how} (temperature {temperature:.2f}{limit}; 1 would be right)."
        )
    if after is None:
        return [
            *lines,
            "  Whether that temperature helps cannot be checked with one image; give two or more.",
        ]
    better = [half["ece_after"] < half["ece_before"] for half in calibration["halves"]]
    if all(better):
        verdict = "That temperature helps"
    elif any(better):
        verdict = "Whether that temperature helps is open (of two halves of the images, one)"
    else:
        verdict = "That temperature does not help"
    return [
        *lines,
        f"  {verdict}: the gap is {_points(after)} then, each half with the temperature of the "
        "other.",
    ]


def _points(share: float) -> str:
    return f"{100 * share:.2f} percentage points"


def compare(reports: Sequence[Report]) -> list[str]:
    """Describe two models side by side."""
    first = reports[0]
    low, high = first["band"]["low"], first["band"]["high"]

    def of_best(report: Report, key: str) -> Any:
        return None if report["best"] is None else report["uncertainty"][report["best"]][key]

    def number(value: float | None, decimals: int = 4) -> str:
        return "none" if value is None else f"{value:.{decimals}f}"

    rows: list[tuple[str, Callable[[Report], str]]] = [
        ("right pixels", lambda r: percent(r["accuracy"])),
        (
            f"wrong pixels with a probability from {low:g} to {high:g}",
            lambda r: percent(r["band"]["wrong"]),
        ),
        ("right pixels there", lambda r: percent(r["band"]["right"])),
        ("best uncertainty", lambda r: r["best"] or "none"),
        (
            f"wrong pixels in the most uncertain {percent(first['most_uncertain'])}",
            lambda r: percent(of_best(r, "share_of_errors")),
        ),
        (
            "a wrong pixel is more uncertain than a right one (AUROC)",
            lambda r: percent(of_best(r, "auroc")),
        ),
        ("area under risk and coverage (AURC; 0 is best)", lambda r: number(of_best(r, "aurc"))),
        (
            "temperature (1: as sure as it may be)",
            lambda r: number(r["calibration"]["temperature"], 2),
        ),
        (
            "gap of probability and truth, percentage points",
            lambda r: number(100 * r["calibration"]["ece_before"], 2),
        ),
        (
            "that gap after the temperature, on other images",
            lambda r: number(
                None
                if r["calibration"]["ece_after"] is None
                else 100 * r["calibration"]["ece_after"],
                2,
            ),
        ),
    ]
    table = [["", *(r["model"] for r in reports)]]
    table += [[label, *(value(r) for r in reports)] for label, value in rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [f"On {first['images']} images, {first['pixels']:,} labelled pixels:"]
    for row in table:
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join((f"  {row[0].ljust(widths[0])}", *cells)))
    return lines + [line for report in reports for line in _warn(report)]


RIGHT, WRONG, INK, PALE = "#2f9e6b", "#d9483b", "#3f3f46", "#f4f4f5"
_WIDE, _HIGH, _GAP, _TOP = 200, 110, 22, 46
_IN_A_ROW = 4


def draw(reports: Sequence[Report]) -> str:
    """Return an SVG: per model, histograms of right and wrong pixels, and reliability."""
    parts: list[str] = []
    width, y = 0, 10
    for report in reports:
        panels = [_draw_histogram("all pixels", report["histograms"]["all"], report)]
        for name, counts in report["histograms"]["classes"].items():
            panels.append(_draw_histogram(f"truly {name}", counts, report))
        panels.append(_draw_reliability(report["calibration"]))
        parts.append(_text(10, y + 16, report["model"], 'font-size="14" font-weight="bold"'))
        for number, panel in enumerate(panels):
            row, column = divmod(number, _IN_A_ROW)
            x, top = 10 + column * (_WIDE + _GAP), y + _TOP + row * (_HIGH + _TOP)
            parts.append(f'<g transform="translate({x} {top})">{panel}</g>')
            width = max(width, x + _WIDE + 10)
        y += 30 + (-(-len(panels) // _IN_A_ROW)) * (_HIGH + _TOP)
    of = reports[0]["histograms"]["of"]
    notes = (
        f"Histograms: across, the probability of {of or 'the true class'}, 0 to 1; up, square root "
        "of the share of right or of wrong pixels. Dark: the band.",
        "Reliability: across, the probability; up, the share that is right; on the diagonal a "
        "probability means what it says.",
    )
    parts.append(
        f'<rect x="10" y="{y}" width="10" height="10" fill="{RIGHT}"/>{_text(25, y + 9, "right")}'
        f'<rect x="70" y="{y}" width="10" height="10" fill="{WRONG}"/>{_text(85, y + 9, "wrong")}'
    )
    parts += [_text(10, y + 28 + 15 * i, note) for i, note in enumerate(notes)]
    width, height = max(width, 700), y + 56
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="11" fill="{INK}">'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" {more}>{escape(text)}</text>'


def _frame(title: str) -> str:
    ticks = "".join(
        _text(at * _WIDE, _HIGH + 12, f"{at:g}", 'text-anchor="middle" font-size="9"')
        for at in (0, 0.5, 1)
    )
    return _text(0, -6, title) + f'<rect width="{_WIDE}" height="{_HIGH}" fill="{PALE}"/>' + ticks


def _draw_histogram(title: str, counts: dict[str, Any], report: Report) -> str:
    low, high = report["band"]["low"], report["band"]["high"]
    parts = [
        _frame(title),
        f'<rect x="{low * _WIDE:.1f}" width="{(high - low) * _WIDE:.1f}" height="{_HIGH}" '
        'fill="#e4e4e7"/>',
    ]
    for key, color in (("right", RIGHT), ("wrong", WRONG)):
        total, step = sum(counts[key]), _WIDE / len(counts[key])
        if not total:
            continue
        # Square roots, because the ends tower over the middle.
        heights = [(count / total) ** 0.5 * _HIGH for count in counts[key]]
        path = "".join(
            f"V{_HIGH - height:.1f}H{(i + 1) * step:.1f}" for i, height in enumerate(heights)
        )
        parts.append(
            f'<path d="M0 {_HIGH}{path}V{_HIGH}Z" fill="{color}" fill-opacity="0.25" '
            f'stroke="{color}"/>'
        )
    if counts["wrong_within"] is not None:
        text = f"{percent(counts['wrong_within'])} of the wrong ones"
        middle = (low + high) / 2 * _WIDE
        parts.append(_text(middle, 14, text, f'text-anchor="middle" fill="{WRONG}"'))
    return "".join(parts)


def _draw_reliability(calibration: dict[str, Any]) -> str:
    parts = [
        _frame("reliability"),
        f'<path d="M0 {_HIGH}L{_WIDE} 0" stroke="#a1a1aa" stroke-dasharray="3 3"/>',
    ]
    styles = (("before", "4 2", "#71717a"), ("after", "", "#1f6feb"))
    for number, (key, dashes, color) in enumerate(styles):
        bins = calibration["bins"][key]
        if bins is None:
            continue
        filled = [
            (c, a)
            for c, a in zip(bins["confidence"], bins["accuracy"], strict=True)
            if c is not None
        ]
        points = " ".join(f"{c * _WIDE:.1f},{_HIGH - a * _HIGH:.1f}" for c, a in filled)
        error = 100 * calibration[f"ece_{key}"]
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5" '
            f'stroke-dasharray="{dashes or "none"}"/>'
            + _text(6, 14 + 13 * number, f"{key}: {error:.2f} points off", f'fill="{color}"')
        )
    return "".join(parts)
