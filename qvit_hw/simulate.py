# SPDX-License-Identifier: Apache-2.0
"""The bundle's vectors through the emitted Verilog, every beat against golden.

    python -m qvit_hw.simulate --bundle B --rtl DIR [--op OP] [--simulator verilator|icarus]
        [--rows N|all] [--waves] [--no-scenarios] [--allow-modified] --out DIR

writes ``results.json`` and ``outputs.safetensors`` (the RTL's codes of every layer) into the output
folder. Each layer is one run with its own parameters, followed by the scenarios: stalls, mixed row
lengths, parameter changes, resets, numeric corners. Where a run differs from golden, the first
diverging row is run again on its own with a waveform and the unit's statistics of that row are set
beside golden's; if the row alone is right, once more behind the row before it.

``float_equal`` compares with the float operator rounded half up to codes. ``sqnr_db`` is taken in code
units for LayerNorm, in probabilities (a code is 2**-code, the last one 0) for softmax. Exit status:
0 all equal, 1 any difference in a value, a cycle, or the registers of rows and status.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from qvit_hw.bundle import Bundle, Layer, load_bundle
from qvit_hw.diagnosis import diagnose, waveform_path
from qvit_hw.errors import MissingTool, UserError
from qvit_hw.generate import select
from qvit_hw.outputs import check_folder, made_folder, told, write_files
from qvit_hw.progress import bars
from qvit_hw.rtl_folder import load_rtl
from sim.compare import Comparison, compare
from sim.job import Case, Job, Outcome, Unit
from sim.runner import RunFailed, Simulation, build, run_job
from sim.scenarios import Row, case_of, operator, scenarios
from sim.tools import SIMULATORS, ToolMissing, Tools, find

__all__ = ["DEFAULT_ROWS", "find_tools", "run"]

DEFAULT_ROWS = 257
CORNER_LENGTH = 600
"""Longest corner row among the scenarios: writing thousands of channels' parameters takes long."""
JOB_BEATS = 100_000
"""Beats after which a unit's cases are spread over more simulator processes."""
DIAGNOSED = 3
"""Runs of a unit whose first difference is looked into; a broken unit fails everywhere."""


@dataclass(frozen=True)
class _Task:
    """A case of a unit, and the layer that it comes from."""

    unit: Unit
    case: Case
    layer: Layer | None


@dataclass(frozen=True)
class _Done:
    """A case that has run."""

    task: _Task
    outcome: Outcome
    found: Comparison
    fault: str | None


def run(
    *,
    bundle: Path,
    rtl: Path,
    out: Path,
    op: str = "all",
    simulator: str = "verilator",
    rows: str | int = DEFAULT_ROWS,
    waves: bool = False,
    scenarios: bool = True,
    allow_modified: bool = False,
    seed: int = 1,
) -> int:
    """Simulate and compare; write the results into ``out`` and return the exit status."""
    if simulator not in SIMULATORS:
        raise UserError(f"Simulator must be {' or '.join(SIMULATORS)}, not {simulator!r}.")
    limit = _row_limit(rows)
    if seed < 0:
        raise UserError(f"Seed must be at least 0, not {seed!r}.")
    check_folder(out)
    loaded = load_bundle(bundle)
    units = load_rtl(rtl, loaded.units(), allow_modified=allow_modified)
    operators = select(op, tuple(units))
    tools = find_tools(simulator)
    tasks: list[_Task] = []
    for name in operators:
        tasks += _layer_tasks(loaded, units[name], limit)
        if scenarios:
            tasks += _scenario_tasks(units[name], seed)
    if not tasks:
        raise UserError(f"Bundle {bundle.name!r} has no layer of {op!r}: nothing to compare.")
    with made_folder(out):
        try:
            done = _simulate(tasks, tools, out, seed, waves)
            entries = _entries(done, tools, out, seed)
        except RunFailed as error:
            raise UserError(f"Simulation failed: {error}") from error
        passed = all(item.fault is None for item in done)
        with told(out):
            _write(out, entries, done, loaded, tools, units, seed, passed)
    return 0 if passed else 1


def find_tools(simulator: str) -> Tools:
    """Return the simulator of this name; MissingTool if anything of it is not there."""
    try:
        return find(simulator)
    except ToolMissing as error:
        raise MissingTool(f"{error}.") from error


def _row_limit(rows: str | int) -> int | None:
    """Rows of each layer; None for all."""
    if rows == "all":
        return None
    try:
        number = int(rows)
    except ValueError:
        number = 0
    if number < 1:
        raise UserError(f"Rows must be a number from 1, or 'all', not {rows!r}.")
    return number


def _layer_tasks(bundle: Bundle, unit: Unit, limit: int | None) -> list[_Task]:
    """One case for each layer, expecting the bundle's golden codes, which golden must confirm."""
    op = operator(unit.op, unit.spec)
    tasks = []
    for layer in bundle.layers:
        if layer.op != unit.op:
            continue
        vectors = layer.input()[:limit].astype(np.int64)
        expected = layer.golden()[:limit].astype(np.int64)
        rows = [Row(vector, layer.params) for vector in vectors]
        case = case_of("vectors", rows, op, unit.lanes, layer=layer.name)
        if not np.array_equal(case.expected, expected.reshape(-1)):
            raise UserError(
                f"Golden vectors of layer {layer.name!r} must be what golden computes: "
                "the bundle was made by another version, calibrate it again."
            )
        tasks.append(_Task(unit, case, layer))
    return tasks


def _scenario_tasks(unit: Unit, seed: int) -> list[_Task]:
    cases = scenarios(unit, seed=seed, corner_length=CORNER_LENGTH)
    return [_Task(unit, case, None) for case in cases]


def _beats(case: Case, lanes: int) -> int:
    return int((-(-case.received // lanes)).sum())


def _jobs(tasks: list[_Task]) -> list[list[_Task]]:
    """Spread the tasks over simulator processes: one unit in each, of similar size."""
    jobs: list[list[_Task]] = []
    for top in dict.fromkeys(task.unit.top for task in tasks):
        mine = [task for task in tasks if task.unit.top == top]
        sizes = [_beats(task.case, task.unit.lanes) for task in mine]
        parts = min(os.cpu_count() or 1, 1 + sum(sizes) // JOB_BEATS, len(mine))
        loads, bins = [0] * parts, [[] for _ in range(parts)]  # type: ignore[var-annotated]
        for size, task in sorted(zip(sizes, mine, strict=True), key=lambda pair: -pair[0]):
            least = loads.index(min(loads))
            loads[least] += size
            bins[least].append(task)
        jobs += bins
    return jobs


def _simulate(
    tasks: list[_Task], tools: Tools, out: Path, seed: int, waves: bool
) -> list[_Done]:
    """Build and run everything, in as many processes as there are processors."""
    jobs = _jobs(tasks)
    with (
        bars(counted=False, kept=True) as progress,
        tempfile.TemporaryDirectory(prefix="qvit-") as work,
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
    ):
        unit_of = {task.unit.top: task.unit for task in tasks}
        bar = progress.add_task(f"{tools.name}: build", total=len(unit_of))

        def compiled(unit: Unit) -> Simulation:
            try:
                found = build(tools, unit.verilog, unit.top, waves=waves)
            except RunFailed as error:
                raise _broken(unit, error) from error
            progress.advance(bar)
            return found

        built = dict(zip(unit_of, pool.map(compiled, unit_of.values()), strict=True))

        def simulate(number: int) -> list[_Done]:
            job = jobs[number]
            unit = job[0].unit
            total = sum(_beats(task.case, unit.lanes) for task in job)
            mine = progress.add_task(f"{tools.name}: {unit.op}", total=total)
            waveform = waveform_path(out, f"{unit.op}-{number}", tools) if waves else None
            ran = run_job(
                built[unit.top],
                Job(unit, [task.case for task in job], seed),
                Path(work) / str(number),
                waveform=waveform,
                progress=lambda count: progress.update(mine, completed=count),
            )
            progress.update(mine, completed=total)
            return [_judge(task, *result) for task, result in zip(job, ran, strict=True)]

        results = [item for part in pool.map(simulate, range(len(jobs))) for item in part]
    order = {id(task): index for index, task in enumerate(tasks)}
    return sorted(results, key=lambda item: order[id(item.task)])


def _broken(unit: Unit, error: RunFailed) -> UserError:
    """The compiler's first complaint about the unit's file, without the folder it was built in."""
    file = re.escape(f"{unit.top}.v")
    found = re.search(rf"(?m)^.*?\b{file}:(\d+)(?::\d+)?:\s*(?:error:\s*)?(.*)$", str(error))
    if found is None:  # nothing about a line: what was said first, paths cut to names
        lines = re.sub(r"(?<!\S)/\S*/", "", str(error)).splitlines()[:2]
        return UserError(f"{unit.verilog.name} does not compile: {' '.join(lines).rstrip('.')}.")
    return UserError(f"{unit.verilog.name} does not compile: line {found[1]}: {found[2].rstrip('.')}.")


def _judge(task: _Task, outcome: Outcome, fault: str | None) -> _Done:
    """Compare; the testbench's own verdict counts as well."""
    found = compare(task.case, outcome, task.unit.lanes)
    return _Done(task, outcome, found, found.fault or outcome.error or fault)


def _entries(done: list[_Done], tools: Tools, out: Path, seed: int) -> list[dict[str, Any]]:
    """The runs as results.json has them."""
    looked: dict[str, int] = {}
    entries = []
    for item in done:
        entry = _entry(item)
        if item.found.divergence is not None:
            top = item.task.unit.top
            looked[top] = looked.get(top, 0) + 1
            entry["divergence"] = {
                **vars(item.found.divergence),
                "intermediates": [],
                "waveform": None,
            }
            if looked[top] <= DIAGNOSED:
                layer = item.task.layer
                entry["divergence"] |= diagnose(
                    item.task.unit,
                    item.task.case,
                    item.found.divergence.row,
                    None if layer is None else layer.params,
                    tools,
                    out,
                    seed,
                )
        entries.append(entry)
    return entries


def _entry(item: _Done) -> dict[str, Any]:
    case, outcome, lanes = item.task.case, item.outcome, item.task.unit.lanes
    lengths = set(case.received.tolist())
    timing, told = outcome.timing, case.timing
    complete = len(timing) == len(case.received) and len(timing) > 0
    cycles = int(timing[-1, 3] - timing[0, 0]) + 1 if complete else 0
    entry: dict[str, Any] = {
        "op": item.task.unit.op,
        "layer": case.layer,
        "scenario": case.name,
        "lanes": lanes,
        "rows": len(case.received),
        "row_length": lengths.pop() if len(lengths) == 1 else None,
        "elements": item.found.elements,
        "mismatches": item.found.mismatches,
        "max_difference": item.found.max_difference,
        "float_equal": None,
        "float_max_difference": None,
        "sqnr_db": None,
        "cycles": cycles,
        "cycles_predicted": None if told is None else int(told[-1, 3] - told[0, 0]) + 1,
        "latency": int(timing[0, 2] - timing[0, 0]) if len(timing) else 0,
        "latency_predicted": None if told is None else int(told[0, 2] - told[0, 0]),
        "stall_in_cycles": outcome.stall_in_cycles,
        "stall_out_cycles": outcome.stall_out_cycles,
        "seconds": round(outcome.seconds, 3),
        "output": None,
        "divergence": None,
        "fault": item.fault,
    }
    if item.task.layer is not None and outcome.codes.size == case.expected.size:
        entry["output"] = item.task.layer.name
        entry |= _against_float(item.task.layer, outcome.codes)
    return entry


def _against_float(layer: Layer, codes: npt.NDArray[np.int64]) -> dict[str, Any]:
    """How the RTL's codes compare with the float operator."""
    length = layer.input().shape[1]
    rtl = codes.reshape(-1, length)
    exact = layer.float()[: rtl.shape[0]].astype(np.float64)
    legal = layer.spec.bounds["code"]
    rounded = np.clip(np.floor(exact + 0.5), legal.low, legal.high).astype(np.int64)
    if layer.op == "softmax":
        step = 1.0 if layer.spec.base == "2" else 0.5
        signal = np.exp2(-step * exact)
        value = np.where(rtl == layer.spec.last_code, 0.0, np.exp2(-step * rtl))
    else:
        signal, value = exact, rtl.astype(np.float64)
    power, noise = float((signal**2).sum()), float(((signal - value) ** 2).sum())
    return {
        "float_equal": float((rtl == rounded).mean()),
        "float_max_difference": int(np.abs(rtl - rounded).max()),
        "sqnr_db": 10 * float(np.log10(power / noise)) if power > 0 and noise > 0 else None,
    }


def _write(
    out: Path,
    entries: list[dict[str, Any]],
    done: list[_Done],
    bundle: Bundle,
    tools: Tools,
    units: dict[str, Unit],
    seed: int,
    passed: bool,
) -> None:
    """Write outputs.safetensors and results.json, both or none."""
    outputs = {
        item.task.layer.name: item.outcome.codes.reshape(-1, item.task.layer.input().shape[1]).astype(
            item.task.layer.golden().dtype
        )
        for item, entry in zip(done, entries, strict=True)
        if entry["output"] is not None and item.task.layer is not None
    }
    document = {
        "schema": "qvit-hw/results",
        "version": 1,
        "bundle": {
            "path_name": bundle.path.name,
            "sha256": bundle.sha256,
            "model": bundle.manifest.get("model"),
            "preset": bundle.manifest.get("preset"),
        },
        "bundle_path": os.path.relpath(bundle.path.resolve(), out.resolve()),
        "simulator": {"name": tools.name, "version": tools.version},
        "rtl": {unit.top: unit.sha256 for unit in units.values()},
        "seed": seed,
        "runs": entries,
        "passed": passed,
    }

    text = json.dumps(document, indent=1) + "\n"
    write_files({out / "outputs.safetensors": save(outputs), out / "results.json": text.encode("utf-8")})


if __name__ == "__main__":
    from qvit_hw.cli import main

    main("simulate")
