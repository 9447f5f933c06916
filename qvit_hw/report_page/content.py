# SPDX-License-Identifier: Apache-2.0
"""What the report says: verdict, tables and pictures, gathered before anything is formatted."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import Layer
from ..errors import UserError
from .pictures import attention_map, error_histogram, ptf_strip
from .results import Results, Run

__all__ = ["Content", "gather"]

_ATTENTION_PIXELS = 2_400_000
"""Pixels of attention maps that a page may carry: a few megabytes at most."""
_HISTOGRAM_ROWS = 2048
_MAX_DIVERGENCES = 8


@dataclass(frozen=True)
class Content:
    """Everything that the page and the JSON tell."""

    passed: bool
    reasons: tuple[str, ...]
    """Why it did not pass, one sentence each; empty if it passed."""
    notes: tuple[str, ...]
    """What was not compared or could not be shown."""
    totals: Mapping[str, Any]
    operators: Sequence[Mapping[str, Any]]
    layers: Sequence[Mapping[str, Any]]
    scenarios: Sequence[Mapping[str, Any]]
    divergences: Sequence[Mapping[str, Any]]
    histograms: Sequence[Mapping[str, Any]]
    heads: Sequence[Mapping[str, Any]]
    ptf: Sequence[Mapping[str, Any]]


def gather(results: Results, layers: Sequence[Layer] | None, page: Path) -> Content:
    """Sum up ``results``; pictures need the bundle's ``layers``, links are relative to ``page``."""
    outputs = results.outputs()
    by_name = {layer.name: layer for layer in layers or ()}
    order = {name: index for index, name in enumerate(by_name)}
    shown = sorted(results.layers, key=lambda run: order.get(run.layer or "", len(order)))
    reasons = list(_reasons(results))
    notes: list[str] = []
    if layers is None:
        notes.append("The bundle was not found, so there are no pictures: name it with --bundle.")
    else:
        reasons += _recount(results, outputs, by_name)
        missing = [name for name in by_name if name not in {run.layer for run in results.runs}]
        if missing:
            notes.append(f"{len(missing)} of {len(by_name)} layers were not simulated: {_list(missing)}.")
    if results.scenarios and not results.layers:
        notes.append("No layer of the model was simulated, only scenarios.")
    return Content(
        passed=not reasons,
        reasons=tuple(reasons),
        notes=tuple(notes),
        totals=_totals(results),
        operators=[_operator(op, results) for op in ("layernorm", "softmax") if _of(op, results)],
        layers=[_row(run, by_name.get(run.layer or "")) for run in shown],
        scenarios=[_row(run, None) for run in results.scenarios],
        divergences=list(_divergences(results, page)),
        histograms=list(_histograms(results, by_name)),
        heads=list(_heads(results, outputs, by_name)),
        ptf=[_ptf(layer) for layer in by_name.values() if layer.op == "layernorm"],
    )


# ---------------------------------------------------------------------------------------- verdict


def _reasons(results: Results) -> Iterator[str]:
    wrong = [run for run in results.runs if run.mismatches or run.divergence is not None]
    if wrong:
        count = sum(run.mismatches for run in wrong)
        where = _list([run.name for run in wrong])
        what = "1 element differs" if count == 1 else f"{count:,} elements differ"
        yield f"{what} between golden model and Verilog: {where}."
    late = [run for run in results.runs if not run.timing_holds]
    if late:
        yield f"Cycles are not what the cycle model says: {_list([run.name for run in late])}."
    told = set(map(id, wrong + late))
    for run in results.runs:
        if run.fault is not None and id(run) not in told:
            told.add(id(run))
            yield f"{run.name}: {run.fault}"
    if not results.passed and not told:
        yield "The simulation itself says that it did not pass."


def _recount(
    results: Results, outputs: Mapping[str, np.ndarray], layers: Mapping[str, Layer]
) -> Iterator[str]:
    """Compare the RTL's recorded outputs with the bundle once more, whatever the results claim."""
    for run in results.layers:
        if run.output is None:
            continue
        layer = layers.get(run.layer or "")
        if layer is None or layer.op != run.op:
            raise UserError(f"Layer {run.layer!r} of the results is not in the bundle.")
        rtl, golden = outputs[run.output], layer.golden()
        if rtl.ndim != 2 or rtl.shape[1] != golden.shape[1] or len(rtl) > len(golden):
            raise UserError(
                f"Output {run.output!r} must have the shape of the bundle's golden codes "
                f"{golden.shape!r}, not {rtl.shape!r}."
            )
        found = int((rtl != golden[: len(rtl)]).sum())
        if found != run.mismatches or rtl.size != run.elements:
            yield (
                f"The outputs of {run.layer} hold {found:,} mismatches in {rtl.size:,} "
                f"elements, but the results say {run.mismatches:,} in {run.elements:,}."
            )


def _totals(results: Results) -> dict[str, Any]:
    runs = results.runs
    return {
        "runs": len(runs),
        "elements": sum(run.elements for run in runs),
        "mismatches": sum(run.mismatches for run in runs),
        "rows": sum(run.rows for run in runs),
        "layers": len({run.layer for run in results.layers}),
        "scenarios": len(results.scenarios),
        "cycles": sum(run.cycles for run in runs),
        "timed": sum(run.cycles_predicted is not None for run in runs),
        "timing_holds": sum(run.timing_holds and run.cycles_predicted is not None for run in runs),
        "seconds": round(sum(run.seconds for run in runs), 3),
        "lanes": sorted({run.lanes for run in runs}),
    }


def _of(op: str, results: Results) -> list[Run]:
    return [run for run in results.runs if run.op == op]


def _operator(op: str, results: Results) -> dict[str, Any]:
    runs = _of(op, results)
    known = [run for run in runs if run.layer is not None and run.float_equal is not None]
    worst = min(known, key=lambda run: run.float_equal or 0.0, default=None)
    steps = [run.float_max_difference for run in known if run.float_max_difference is not None]
    return {
        "op": op,
        "layers": len({run.layer for run in runs if run.layer is not None}),
        "rows": sum(run.rows for run in runs),
        "elements": sum(run.elements for run in runs),
        "mismatches": sum(run.mismatches for run in runs),
        "float_equal_mean": _mean([run.float_equal or 0.0 for run in known]),
        "float_equal_worst": None if worst is None else worst.float_equal,
        "float_equal_worst_layer": None if worst is None else worst.layer,
        "float_max_difference": max(steps, default=None),
    }


def _row(run: Run, layer: Layer | None) -> dict[str, Any]:
    beats = None if run.row_length is None else -(-run.row_length // run.lanes)
    rows = max(run.rows, 1)
    metrics: Mapping[str, Any] = {} if layer is None else layer.entry["metrics"]
    return {
        "name": run.name,
        "op": run.op,
        "scenario": run.scenario,
        "lanes": run.lanes,
        "rows": run.rows,
        "row_length": run.row_length,
        "beats": beats,
        "elements": run.elements,
        "mismatches": run.mismatches,
        "max_difference": run.max_difference,
        "float_equal": run.float_equal,
        "float_max_difference": run.float_max_difference,
        "sqnr_db": run.sqnr_db,
        "av_sqnr": metrics.get("av_sqnr"),
        "av_sqnr_ideal": metrics.get("av_sqnr_ideal"),
        "cycles": run.cycles,
        "cycles_predicted": run.cycles_predicted,
        "cycles_per_row": run.cycles / rows,
        "cycles_per_row_predicted": (
            None if run.cycles_predicted is None else run.cycles_predicted / rows
        ),
        "latency": run.latency,
        "latency_predicted": run.latency_predicted,
        "stall_in_cycles": run.stall_in_cycles,
        "stall_out_cycles": run.stall_out_cycles,
        "seconds": run.seconds,
        "timing_holds": run.timing_holds,
        "passed": run.passed,
    }


def _divergences(results: Results, page: Path) -> Iterator[dict[str, Any]]:
    failed = [run for run in results.runs if run.divergence is not None]
    for run in failed[:_MAX_DIVERGENCES]:
        found = run.divergence
        assert found is not None
        link = None
        if found.waveform is not None and (results.folder / found.waveform).is_file():
            target = (results.folder / found.waveform).resolve()
            link = Path(os.path.relpath(target, page.resolve().parent)).as_posix()
        yield {
            "name": run.name,
            "op": run.op,
            "scenario": run.scenario,
            "mismatches": run.mismatches,
            "elements": run.elements,
            "row": found.row,
            "column": found.column,
            "lane": found.column % run.lanes,
            "beat": found.column // run.lanes,
            "cycle": found.cycle,
            "golden": found.golden,
            "rtl": found.rtl,
            "waveform": found.waveform,
            "link": link,
            "intermediates": [vars(value) for value in found.intermediates],
        }


# --------------------------------------------------------------------------------------- pictures


def _histograms(results: Results, layers: Mapping[str, Layer]) -> Iterator[dict[str, Any]]:
    for run in _first_runs(results):
        layer = layers.get(run.layer or "")
        if layer is None:
            continue
        golden = layer.golden()[:_HISTOGRAM_ROWS].astype(float)
        low, high = _code_range(layer)
        exact = np.clip(np.nan_to_num(layer.float()[:_HISTOGRAM_ROWS], posinf=high), low, high)
        difference = golden - exact
        yield {
            "name": layer.name,
            "op": layer.op,
            "equal": run.float_equal,
            "within": float((np.abs(difference) <= 0.5).mean()),
            "largest": float(np.abs(difference).max()),
            "svg": error_histogram(difference),
        }


def _first_runs(results: Results) -> Iterator[Run]:
    seen: set[str | None] = set()
    for run in results.layers:
        if run.layer not in seen:
            seen.add(run.layer)
            yield run


def _code_range(layer: Layer) -> tuple[int, int]:
    code = layer.spec.bounds["code"]
    return code.low, code.high


def _heads(
    results: Results, outputs: Mapping[str, np.ndarray], layers: Mapping[str, Layer]
) -> Iterator[dict[str, Any]]:
    """Maps of a few heads of the first image, spread over layers and heads."""
    runs = [run for run in _first_runs(results) if run.op == "softmax" and run.output is not None]
    shown = [(run, layer) for run in runs if (layer := layers.get(run.layer or "")) is not None]
    if not shown:
        return
    tokens = max(int(layer.golden().shape[1]) for _, layer in shown)
    budget = max(4, _ATTENTION_PIXELS // (3 * tokens * tokens))
    chosen = _spread(len(shown), min(len(shown), max(2, budget // 2)))
    first_wrong = [index for index, (run, _) in enumerate(shown) if run.mismatches][:2]
    chosen = sorted({*chosen, *first_wrong})
    for index in chosen:
        run, layer = shown[index]
        golden, exact = layer.golden(), layer.float()
        rtl = outputs[run.output or ""]
        count = golden.shape[1]
        heads = int(layer.entry["heads"])
        wrong = np.unique(np.argwhere(rtl != golden[: len(rtl)])[:, 0] // count)
        picked = _spread(heads, min(heads, max(1, budget // len(chosen))))
        for head in sorted({*picked, *(int(row) for row in wrong[:2] if row < heads)}):
            rows = slice(head * count, (head + 1) * count)
            if len(golden[rows]) < count:
                continue
            yield _head(layer, head, golden[rows], exact[rows], rtl[rows])


def _head(
    layer: Layer, head: int, golden: np.ndarray, exact: np.ndarray, rtl: np.ndarray
) -> dict[str, Any]:
    last = _code_range(layer)[1]
    low, high = int(golden.min()), int(golden.max())
    count = golden.shape[1]
    present = np.zeros(golden.shape, dtype=bool)
    present[: len(rtl)] = True
    full = np.zeros(golden.shape, dtype=golden.dtype)
    full[: len(rtl)] = rtl
    wrong = present & (full != golden)
    side = math.isqrt(count - 1)
    square = side > 1 and side * side == count - 1

    def over(codes: np.ndarray, **marks: np.ndarray) -> str | None:
        """The class token's row, laid out as the picture's patches."""
        if not square:
            return None
        grids = {key: mark[0, 1:].reshape(side, side) for key, mark in marks.items()}
        return attention_map(codes[0, 1:].reshape(side, side), low, high, **grids)

    rounded = np.clip(np.rint(np.nan_to_num(exact, posinf=last)), 0, last)
    return {
        "layer": layer.name,
        "head": head,
        "tokens": count,
        "rows": len(rtl),
        "low": low,
        "high": high,
        "zero": high == last,
        "contrast": float(golden.std()),
        "mismatches": int(wrong.sum()),
        "float_differs": int((golden != rounded).sum()),
        "float": attention_map(exact, low, high),
        "golden": attention_map(golden, low, high),
        "rtl": attention_map(full, low, high, present=present, wrong=wrong),
        "float_patches": over(exact),
        "golden_patches": over(golden),
        "rtl_patches": over(full, present=present, wrong=wrong),
    }


def _spread(count: int, wanted: int) -> list[int]:
    """``wanted`` of the numbers 0 .. count-1, evenly, the first and last among them."""
    return sorted({round(x) for x in np.linspace(0, count - 1, wanted)}) if count else []


def _ptf(layer: Layer) -> dict[str, Any]:
    shifts = np.asarray(layer.params.shift)
    counts = np.bincount(shifts, minlength=layer.spec.max_shift + 1)
    return {
        "name": layer.name,
        "channels": int(shifts.size),
        "mean": float(shifts.mean()),
        "counts": [int(count) for count in counts],
        "image": ptf_strip(shifts),
    }


# ------------------------------------------------------------------------------------------ words


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _list(names: Sequence[str], shown: int = 4) -> str:
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - shown} more" if len(unique) > shown else ""
    return ", ".join(unique[:shown]) + more
