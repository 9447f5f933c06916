# SPDX-License-Identifier: Apache-2.0
"""Tables of what was measured: on a terminal, and the one of the README, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from qvit_hw.costing.baseline import GROWN, SHRUNK, changes
from qvit_hw.costing.measuring import Row
from qvit_hw.costing.peers import PEERS, Peer
from qvit_hw.costing.targets import TARGETS
from qvit_hw.costing.units import ACCELERATOR, DEFAULT_UNITS

__all__ = ["COLUMNS", "cell", "change_told", "markdown", "parts_markdown", "terminal"]

COLUMNS = ("LUT", "LUT as memory", "FF", "DSP", "BRAM", "MHz", "um2", "NAND2", "memory bits")
README_UNITS = DEFAULT_UNITS
README_LANES = (2, 8)


def cell(value: float | str | None) -> str:
    """A number for people; nothing for none."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def per_lut(value: float | None) -> str:
    """Elements a cycle and LUT."""
    return "" if value is None else f"{1e3 * value:.2f}e-3"


def change_told(row: Row, before: Sequence[Row]) -> str:
    """The change of a row that is largest, as a percentage; nothing where all is as it was."""
    found = sorted(changes([row], before), key=lambda change: abs(change.share))
    if not found:
        return "" if any(row.key == old.key for old in before) else "new"
    most = found[-1]
    return f"{most.name} {100 * most.share:+.1f} %" if most.before else f"{most.name} +{most.after:g}"


def terminal(rows: Sequence[Row], before: Sequence[Row]) -> list[Table]:
    """A table a target."""
    tables = []
    for name, target in TARGETS.items():
        mine = [row for row in rows if row.target == name]
        if not mine:
            continue
        columns = [
            each for each in COLUMNS if each != COLUMNS[1] and any(each in row.figures for row in mine)
        ]
        noted = any("note" in row.figures for row in mine)
        table = Table(title=f"{name}: {target.told}")
        for title in ("unit", "lanes", "variant"):
            table.add_column(title, justify="right" if title == "lanes" else "left", no_wrap=True)
        rates = ["elem/cycle/LUT"] * (name != "asic") + ["Melem/s/LUT"] * ("MHz" in columns)
        for title in (*columns, *rates, "baseline", *(["note"] if noted else [])):
            table.add_column(title, justify="left" if title == "note" else "right", no_wrap=title != "note")
        for row in mine:
            rated = [per_lut(row.density)] * (name != "asic")
            if "MHz" in columns:
                rated.append("" if row.throughput is None else f"{row.throughput:.3f}")
            table.add_row(
                row.unit,
                str(row.lanes),
                row.variant,
                *(cell(row.figures.get(each)) for each in columns),
                *rated,
                change_told(row, before),
                *([str(row.figures.get("note", ""))] if noted else []),
            )
        tables.append(table)
    return tables


def markdown(rows: Sequence[Row]) -> str:
    """The README's table of size and frequency: UltraScale+, the clock on ECP5, the peers below.

    Only what is in ``rows`` is there, so that a baseline gives the whole of it.
    """
    known = {row.key: row for row in rows}
    lines = [
        "| unit | lanes | LUT | FF | DSP | BRAM | elements/cycle/LUT | MHz on ECP5 | Melem/s per LUT4 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for unit in README_UNITS:
        for lanes in README_LANES:
            size = known.get((unit, lanes, "xcup", "default"))
            speed = known.get((unit, lanes, "ecp5", "default"))
            if size is None:
                continue
            figures = [cell(size.figures.get(name)) for name in ("LUT", "FF", "DSP", "BRAM")]
            rate = "" if speed is None or speed.throughput is None else f"{speed.throughput:.3f}"
            clock = "" if speed is None else _mhz(speed.number("MHz"))
            lines.append(_line((unit, str(lanes), *figures, per_lut(size.density), clock, rate)))
    units = {row.unit.partition("-")[0] for row in rows}
    lines += [_peer(peer) for peer in PEERS if peer.op in units]
    return "\n".join(lines) + "\n"


def _peer(peer: Peer) -> str:
    rate = "" if peer.throughput is None else f"{peer.throughput:.3f}"
    numbers = (cell(each) for each in (peer.lut, peer.ff, peer.dsp, peer.bram))
    name = f"*{peer.op} of {peer.name}* ({peer.bits}; {peer.source.partition(':')[0]})"
    return _line((name, f"{peer.rate:.2g}", *numbers, per_lut(peer.density), _mhz(peer.mhz), rate))


def _mhz(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def parts_markdown(rows: Sequence[Row]) -> str:
    """The accelerator by unit, a table a target, as in ``docs/accelerator.md``."""
    text = ""
    for row in rows:
        if row.unit != ACCELERATOR or not row.parts:
            continue
        titles = [name for name in COLUMNS if name in row.figures]
        text += f"\n{row.lanes} x {row.lanes} on {row.target}\n\n"
        text += _line(("unit", *titles)) + "\n|---|" + "---:|" * len(titles) + "\n"
        for part, figures in row.parts.items():
            text += _line((part, *(f"{figures[name]:g}" for name in titles))) + "\n"
    return text


assert set(GROWN) | set(SHRUNK) <= set(COLUMNS)
