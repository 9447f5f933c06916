# SPDX-License-Identifier: Apache-2.0
"""The accelerator in simulation: its bench is built and run.

``accelerator_bench.sv`` has the memory and the clock; ``tb_accelerator`` is the host. Python does
nothing between a run's start and its interrupt. ``accelerator_outside.sv`` has wires alone, for a memory and
a host in Python, ``tb_accelerator_outside``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from golden.accelerator import AcceleratorSpec
from sim.bench import JOB_VARIABLE, PROGRESS_FILE
from sim.runner import NOISE, RunFailed, Simulation, Style, build, run_tests, watched
from sim.session import Bus, Memory, Outcome, Session
from sim.tools import Tools

__all__ = ["OUTSIDE", "TOP", "Words", "build_bench", "dumped", "simulate"]

Matrix = npt.NDArray[np.int64]
TOP = "accelerator_bench"
OUTSIDE = "accelerator_outside"
STYLES = {
    TOP: Style(
        public=(
            'public_flat_rw -module "{top}" -var "host_*"',
            'public_flat_rd -module "{top}" -var "faults"',
        ),
        # The bench has a clock of its own (--timing). Every register is initialised by the Verilog itself.
        verilator=(
            *("--timing", "--noassert", "--x-assign", "fast", "--x-initial", "fast"),
            *("-CFLAGS", "-fcoroutines -std=c++20"),
        ),
        optimise="-O3",
    ),
    # A few runs, every cycle of which Python drives: compiling takes all the time.
    OUTSIDE: Style(
        public=(
            *(f'public_flat_rw -module "{{top}}" -var "{name}"' for name in ("clk", "rst", "breach")),
            'public_flat_rw -module "{top}" -var "?_axi*_*"',
            'public_flat_rd -module "{top}" -var "irq"',
        ),
        optimise="-O0",
    ),
}


def build_bench(
    tools: Tools,
    verilog: str,
    spec: AcceleratorSpec,
    folder: Path,
    top: str = TOP,
    *,
    noise: bool = False,
) -> Simulation:
    """The simulator of an accelerator's Verilog in a bench, compiled now or found in the cache.

    noise: Verilator begins with noise in whatever the Verilog does not initialise.
    """
    bench = Path(__file__).with_name(f"{top}.sv").read_text(encoding="utf-8")
    bits = (0x4000 + 4 * spec.outputs * spec.size - 1).bit_length()
    source = folder / f"{top}.v"
    source.write_text(
        f"`define SIZE {spec.size}\n`define AXIL_BITS {bits}\n{bench}\n{verilog}", encoding="utf-8"
    )
    style = STYLES[top]
    if noise:
        style = replace(style, verilator=(*style.verilator, *NOISE))
    return build(tools, source, top, style=style)


def simulate(
    simulation: Simulation,
    session: Session,
    memory: Memory,
    folder: Path,
    *,
    bus: Bus | None = None,
    dump: bool = False,
    progress: Callable[[int], None] | None = None,
    plusargs: Sequence[str] = (),
) -> list[tuple[Outcome | None, str | None]]:
    """Do all runs; return the outcome of each (None if abandoned or stuck) and its fault, None if it passed.

    dump: leave what the units computed in ``folder``, :func:`dumped`.  progress: called with cycles.
    plusargs: more of them for the simulator.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    memory.write(folder / "memory.bin")
    session.write(folder)
    bus = bus or Bus()
    told = [*plusargs, f"+memory={folder / 'memory.bin'}", f"+words={memory.words}"]
    told += [f"+{name}={value}" for name, value in asdict(bus).items()]
    told += [f"+dump={folder}/"] if dump else []
    module = "sim.tb_accelerator"
    names = [f"{module}.runs/index={index}" for index in range(len(session.runs))]
    with watched(folder / PROGRESS_FILE, progress):
        faults = run_tests(
            simulation,
            module,
            names,
            folder,
            env={JOB_VARIABLE: str(folder)},
            plusargs=told,
        )
    return [(Outcome.read(folder, index), faults[name]) for index, name in enumerate(names)]



@dataclass(frozen=True, eq=False)
class Words:
    """What the units computed in a run, in the order in which they wrote it, int64 [n, L] each.

    sums, words: of the drain, before and behind the requantiser.
    """

    sums: Matrix
    words: Matrix
    layernorm: Matrix
    softmax: Matrix


def dumped(folder: Path, index: int, spec: AcceleratorSpec) -> Words:
    """The words of run ``index`` of :func:`simulate` with ``dump``."""

    def lines(unit: str) -> list[bytes]:
        try:
            return (folder / f"{unit}.{index}").read_bytes().split()
        except OSError as error:
            raise RunFailed(f"The simulator left no words of {unit} in run {index}") from error

    size = spec.size
    return Words(
        _matrix(lines("sums"), size, 32, signed=True),
        _matrix(lines("drain"), size, 32, signed=True),
        _matrix(lines("layernorm"), size, spec.layernorm.out_bits, signed=True),
        _matrix(lines("softmax"), size, spec.softmax.code_bits, signed=False),
    )


def _matrix(lines: list[bytes], size: int, bits: int, *, signed: bool) -> Matrix:
    """Words in hexadecimal digits, the first lane's last, as int64 [lines, size]."""
    width = -(-size * bits // 8)
    try:
        content = bytes.fromhex(b"".join(line.zfill(2 * width) for line in lines).decode("ascii"))
    except ValueError as error:
        raise RunFailed(f"Words of {size} x {bits} bits must be known, not 'x'") from error
    raw = np.frombuffer(content, np.uint8).reshape(-1, width)[:, ::-1]
    if bits in (8, 32):
        kind = f"<{'i' if signed else 'u'}{bits // 8}"
        return np.ascontiguousarray(raw).view(kind).astype(np.int64)
    places = np.unpackbits(raw, axis=1, bitorder="little")[:, : size * bits]
    places = places.reshape(-1, size, bits).astype(np.int64)
    weights = 1 << np.arange(bits)
    if signed:
        weights[-1] = -weights[-1]
    return np.asarray(places @ weights)
