# SPDX-License-Identifier: Apache-2.0
"""The page of costs: bars against the peers, tables by target, changes against the baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qvit_hw.costing.baseline import Change, changes
from qvit_hw.costing.measuring import Row
from qvit_hw.costing.peers import Peer, peers_of
from qvit_hw.costing.tables import COLUMNS, cell
from qvit_hw.costing.targets import TARGETS
from qvit_hw.costing.units import ACCELERATOR, UNITS
from qvit_hw.report_page.frame import render

__all__ = ["cost_page"]


@dataclass(frozen=True)
class Bar:
    """A line of a chart: ours or a peer's, how long, and what it says."""

    name: str
    detail: str
    value: float
    length: float
    told: str
    ours: bool


@dataclass(frozen=True)
class Chart:
    """Bars of one quantity of one operator."""

    op: str
    title: str
    bars: tuple[Bar, ...]


def cost_page(
    rows: Sequence[Row], before: Sequence[Row], faults: Sequence[str], tools: Mapping[str, str]
) -> str:
    """Return the page; faults: a sentence for whatever makes the verdict a bad one."""
    units = list(dict.fromkeys(row.unit for row in rows))
    targets = list(dict.fromkeys(row.target for row in rows))
    return render(
        "cost.html.j2",
        kind="cost of the units",
        number=str(len(units)),
        of=f"{'unit' if len(units) == 1 else 'units'} on {_listed(targets)}",
        passed=not faults,
        css=("cost.css",),
        faults=list(faults),
        compared=any(row.key == old.key for row in rows for old in before),
        told={name: UNITS[name].told for name in units},
        charts=_charts(rows),
        tables=_tables(rows, before),
        parts=[row for row in rows if row.unit == ACCELERATOR and row.parts],
        part_columns=COLUMNS,
        cell=cell,
        tools=dict(tools),
    )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _charts(rows: Sequence[Row]) -> list[Chart]:
    """Elements a cycle and LUT (UltraScale+), million elements a second and LUT4 (ECP5)."""
    charts = []
    for op in ("softmax", "layernorm"):
        mine = [row for row in rows if row.unit.partition("-")[0] == op]
        size = [row for row in mine if row.target == "xcup"]
        charts.append(
            _chart(op, "elements a cycle and LUT, in thousandths, UltraScale+", size,
                   lambda row: row.density, lambda peer: peer.density, 1e3)
        )
        speed = [row for row in mine if row.target == "ecp5"]
        charts.append(
            _chart(op, "million elements a second and LUT4, ECP5", speed,
                   lambda row: row.throughput, lambda peer: peer.throughput, 1.0)
        )
    return [chart for chart in charts if any(bar.ours for bar in chart.bars)]


def _chart(
    op: str,
    title: str,
    rows: Sequence[Row],
    ours: Callable[[Row], float | None],
    theirs: Callable[[Peer], float | None],
    factor: float,
) -> Chart:
    found: list[tuple[str, str, float, bool]] = []
    for row in rows:
        if (value := ours(row)) is not None:
            kind = "" if row.variant == "default" else f", {row.variant}"
            dsp = cell(row.figures.get("DSP"))
            clock = "" if row.number("MHz") is None else f", {row.number('MHz'):.0f} MHz"
            detail = f"{cell(row.figures.get('LUT'))} LUT, {dsp} DSP{clock}; {UNITS[row.unit].told}"
            found.append((f"{row.unit}, {row.lanes} lanes{kind}", detail, value * factor, True))
    for peer in peers_of(op):
        if (value := theirs(peer)) is not None:
            dsp = "" if peer.dsp is None else f", {peer.dsp} DSP"
            size = f"{peer.lut:,} LUT{dsp}" if factor > 1 else f"{peer.lut4:,} LUT4, {peer.mhz:g} MHz"
            detail = f"{size}; bits: {peer.bits}; {peer.source}"
            found.append((peer.name, detail, value * factor, False))
    most = max((value for _, _, value, _ in found), default=1.0)
    ordered = sorted(found, key=lambda each: -each[2])
    bars = (
        Bar(name, detail, value, value / most, f"{value:.3g}", own)
        for name, detail, value, own in ordered
    )
    return Chart(op, title, tuple(bars))


def _tables(rows: Sequence[Row], before: Sequence[Row]) -> list[dict[str, Any]]:
    known = {row.key for row in before}
    tables = []
    for name, target in TARGETS.items():
        mine = [row for row in rows if row.target == name and row.unit != ACCELERATOR]
        if not mine:
            continue
        columns = [each for each in COLUMNS if any(each in row.figures for row in mine)]
        found: dict[tuple[str, int, str, str], dict[str, Change]] = {}
        for change in changes(mine, before):
            found.setdefault(change.row.key, {})[change.name] = change
        tables.append(
            {
                "name": name,
                "told": target.told,
                "columns": columns,
                "rated": name != "asic",
                "timed": "MHz" in columns,
                "noted": any("note" in row.figures for row in mine),
                "rows": [
                    {
                        "row": row,
                        "changes": found.get(row.key, {}),
                        "known": row.key in known,
                        "bad": any(change.bad for change in found.get(row.key, {}).values()),
                        "note": row.figures.get("note", ""),
                    }
                    for row in mine
                ],
            }
        )
    return tables
