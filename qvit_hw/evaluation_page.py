# SPDX-License-Identifier: Apache-2.0
"""The page of an evaluation, and its JSON: what :mod:`qvit_hw.evaluation` holds, told to people.

The page is one file in the style of the report: it needs nothing from elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from .evaluation import BAR, SCHEMA, Cost, Evaluation, Sensitivity, Tensor, document
from .models.labelled import Labelled
from .outputs import check_replaced, replace_folder
from .report_page.charts import Band, Point, depth_chart, disagreement_chart
from .report_page.frame import FOLDER, environment
from .report_page.pictures import thumbnail

__all__ = ["JSON", "PAGE", "check_page_folder", "render", "write_page"]

PAGE, JSON = "evaluation.html", "evaluation.json"
_THIN = "\u2009"
_MINUS = "\u2212"
_DEAREST = 12
"""Single quantisers that the page lists."""


def check_page_folder(out: Path) -> None:
    """Raise UserError unless ``out`` can hold an evaluation: absent, an empty folder, or an older one."""
    check_replaced(out, JSON, SCHEMA, " and no evaluation")


def write_page(found: Evaluation, out: Path, data: Labelled) -> None:
    """Make ``out`` a folder of PAGE and JSON, in place of an older one; UserError where that cannot be."""
    check_page_folder(out)
    replace_folder(out, {PAGE: render(found, data), JSON: document(found)})


def render(found: Evaluation, data: Labelled) -> str:
    """Return the page; ``data`` has the pictures of its examples."""
    filters: dict[str, Callable[..., Any]] = {
        "percent": percent,
        "points": _points,
        "db": _db,
        "signed": _signed,
        "seconds": _seconds,
        "memory": lambda size: f"{size / 2**20:,.0f}{_THIN}MiB",
    }
    series = list(dict.fromkeys(tensor.group for tensor in found.tensors))
    bands = _bands(found.tensors)
    return environment(filters).get_template("evaluation.html.j2").render(
        e=found,
        bar=BAR,
        models=found.models,
        complete=found.holds is not None,
        headline=_headline(found),
        elements=sum(tensor.elements for tensor in found.tensors),
        differing=sum(tensor.end_to_end or 0 for tensor in found.tensors),
        wrong=sum(tensor.operator or 0 for tensor in found.tensors),
        ties=sum(tensor.ties or 0 for tensor in found.tensors),
        operators=sorted({tensor.op for tensor in found.tensors}),
        series=series,
        depth=depth_chart(_points_of(found, series), bands),
        apart=_apart_chart(found.tensors, series, bands),
        error=None if found.sensitivity is None else _error(found.sensitivity),
        whiskers=_whiskers(found),
        speeds={speed.model: speed for speed in found.speeds},
        examples=_examples(found, data),
        origin=_origin(found),
        css="".join(
            (FOLDER / name).read_text("utf-8") for name in ("style.css", "evaluation.css")
        ),
        js="".join((FOLDER / name).read_text("utf-8") for name in ("script.js", "evaluation.js")),
    )


# ----------------------------------------------------------------------------------------- content


def _headline(found: Evaluation) -> dict[str, str]:
    """The one number, what it is of, and the title of the page."""
    if found.accuracies:
        number, plain = (percent(found.of(name).top1.share) for name in ("golden", "float"))
        return {"number": number, "of": f"top-1 in integers, {plain} in float"}
    pair = found.between("golden", "float")
    if pair.sqnr_db is None:
        return {"number": "Exact", "of": "outputs in integers are those in float"}
    what = "the features" if pair.same is None else "the outputs"
    return {"number": _db(pair.sqnr_db), "of": f"{what} in integers against float"}


def _part_label(part: str) -> str:
    """'blocks.3' as 3, 'layers.2.blocks.5' as 2.5, 'layers.1.downsample' as 1↓."""
    if part in ("embedding", "head"):
        return {"embedding": "in", "head": "out"}[part]
    numbers = ".".join(re.findall(r"\d+", part))
    return f"{numbers}↓" if part.endswith("downsample") else numbers


def _bands(tensors: Sequence[Tensor]) -> list[Band]:
    bands: list[Band] = []
    for place, tensor in enumerate(tensors):
        label = _part_label(tensor.part)
        if bands and bands[-1].label == label:
            bands[-1] = Band(label, bands[-1].first, place)
        else:
            bands.append(Band(label, place, place))
    return bands


def _points_of(found: Evaluation, series: Sequence[str]) -> list[Point]:
    def text(tensor: Tensor) -> str:
        told = f"{tensor.name}: {_db(tensor.sqnr_db)}"
        return (
            told if found.holds is None else f"{told}, calibrated {_db(tensor.sqnr_calibrated_db)}"
        )

    return [
        Point(
            place,
            tensor.sqnr_db,
            series.index(tensor.group),
            text(tensor),
            tensor.name.removeprefix(tensor.part),
        )
        for place, tensor in enumerate(found.tensors)
    ]


def _apart_chart(
    tensors: Sequence[Tensor], series: Sequence[str], bands: Sequence[Band]
) -> str | None:
    """Where codes differ between calibrated and golden; None if none does."""
    if not any(tensor.end_to_end or tensor.operator for tensor in tensors):
        return None
    ends, operators = [], []
    for place, tensor in enumerate(tensors):
        whole, alone = tensor.agreement, tensor.operator_agreement
        if whole is None or alone is None:
            continue
        text = f"{tensor.name}: {percent(whole)} equal, the operator alone {percent(alone)}"
        number = series.index(tensor.group)
        ends.append(Point(place, 1 - whole, number, text))
        operators.append(Point(place, 1 - alone, number, text))
    return disagreement_chart(ends, operators, bands, 1 - BAR)


def _error(found: Sensitivity) -> dict[str, Any]:
    """Bars of the groups and of the dearest quantisers, and a map of groups by parts."""
    groups = sorted(found.groups, key=lambda cost: -cost.noise)
    dearest = sorted(found.quantisers, key=lambda cost: -cost.noise)[:_DEAREST]
    parts = [cost.name for cost in found.parts]
    total = sum(cost.noise for cost in found.quantisers) or 1.0
    cells = {
        (cost.name, part): [
            each for each in found.quantisers if (each.group, each.part) == (cost.name, part)
        ]
        for cost in groups
        for part in parts
    }
    shares = {key: sum(cost.noise for cost in costs) / total for key, costs in cells.items()}
    most = max(shares.values()) or 1.0

    def cell(group: str, part: str) -> Mapping[str, Any] | None:
        costs, share = cells[group, part], shares[group, part]
        names = "; ".join(f"{cost.name} {_db(cost.alone_db)}" for cost in costs)
        return {"share": share, "level": (share / most) ** 0.5, "text": names} if costs else None

    return {
        "groups": _bars(groups),
        "dearest": _bars(dearest),
        "parts": [_part_label(part) for part in parts],
        "names": parts,
        "rows": [(cost.name, [cell(cost.name, part) for part in parts]) for cost in groups],
    }


def _bars(costs: Sequence[Cost]) -> list[tuple[Cost, float]]:
    """Each with its length as a share of the longest."""
    most = max((cost.noise for cost in costs), default=0.0) or 1.0
    return [(cost, cost.noise / most) for cost in costs]


def _whiskers(found: Evaluation) -> dict[str, dict[str, float]]:
    """Top-1 and its interval of every model, in percent of one axis for all."""
    shares = {accuracy.model: accuracy.top1 for accuracy in found.accuracies}
    low = min((share.low for share in shares.values()), default=0.0)
    high = max((share.high for share in shares.values()), default=1.0)
    room = max(high - low, 1e-9)

    def place(value: float) -> float:
        return 4 + 92 * (value - low) / room

    return {
        name: {"low": place(s.low), "high": place(s.high), "share": place(s.share)}
        for name, s in shares.items()
    }


def _examples(found: Evaluation, data: Labelled) -> list[dict[str, Any]]:
    def name(label: int | None) -> str | None:
        if label is None or found.classes is None or label >= len(found.classes):
            return None if label is None else str(label)
        return found.classes[label].split(",")[0]

    return [
        {
            "name": example.name,
            "image": thumbnail(data.images([example.number])[0]),
            "label": name(example.label),
            "says": [
                (model, name(said), said == example.label)
                for model, said in zip(found.models, example.says, strict=True)
            ],
        }
        for example in found.examples
    ]


def _origin(found: Evaluation) -> list[tuple[str, str]]:
    rows = [
        ("bundle", f"{found.bundle.get('name')}  {found.bundle.get('sha256')}"),
        ("images", f"{found.images} of {found.data}; tensors of {found.traced}"),
    ]
    if found.sensitivity is not None:
        rows[-1] = (rows[-1][0], f"{rows[-1][1]}; quantisers on {found.sensitivity.images}")
    rows.append(
        ("lowering", f"{found.lowering:.1e} of the output, timm's forward against the network's")
    )
    for package in ("qvit-hw", "numpy", "torch", "timm"):
        try:
            rows.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return rows


# ------------------------------------------------------------------------------------------- words


def percent(share: float) -> str:
    """A share with two decimals, more where only they tell it from one; 100 % is exactly one."""
    if share == 1:
        return f"100{_THIN}%"
    digits = 2
    while digits < 6 and f"{100 * share:.{digits}f}".startswith("100"):
        digits += 1
    text = f"{100 * share:.{digits}f}"
    return (f"{100 - 10**-6:.6f}" if text.startswith("100") else text) + f"{_THIN}%"


def _points(difference: float) -> str:
    """A difference of shares in percentage points."""
    return _signed(100 * difference, 2)


def _signed(value: float | None, digits: int = 1) -> str:
    if value is None:
        return "–"
    text = f"{value:+.{digits}f}".replace("-", _MINUS)
    return text.lstrip("+" + _MINUS) if not float(f"{value:.{digits}f}") else text


def _db(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f}{_THIN}dB".replace("-", _MINUS)


def _seconds(value: float) -> str:
    """A time with three digits."""
    if value >= 1:
        return f"{value:.3g}{_THIN}s"
    return f"{value * 1e3:.3g}{_THIN}ms" if value >= 1e-4 else f"{value * 1e6:.3g}{_THIN}µs"
