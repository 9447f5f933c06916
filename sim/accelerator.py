# SPDX-License-Identifier: Apache-2.0
"""The accelerator in simulation: its bench is built and run.

``accelerator_bench.sv`` has the memory and the clock; ``tb_accelerator`` is the host. Python does
nothing between a run's start and its interrupt. ``accelerator_outside.sv`` has wires alone, for a memory and
a host in Python, ``tb_accelerator_outside``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from golden.accelerator import AcceleratorSpec
from sim.bench import JOB_VARIABLE, PROGRESS_FILE
from sim.runner import NOISE, RunFailed, Simulation, Style, build, run_tests, watched
from sim.session import Bus, Memory, Outcome, Session
from sim.tools import Tools

__all__ = [
    "MODULE",
    "OUTSIDE",
    "REGISTERS",
    "TOP",
    "build_bench",
    "prepared",
    "register_names",
    "run_names",
    "simulate",
]

MODULE = "sim.tb_accelerator"
REGISTERS = "sim.tb_accelerator_registers"
REGISTER_TESTS = ("fixed", "decoded", "written", "channels", "still", "counted")
TOP = "accelerator_bench"
OUTSIDE = "accelerator_outside"
STYLES = {
    TOP: Style(
        public=(
            'public_flat_rw -module "{top}" -var "host_*"',
            'public_flat_rd -module "{top}" -var "faults"',
            # Counters that no run could bring near their end.
            *(f'public_flat_rw -module "qvit_accelerator_control" -var "{x}"' for x in ("cycles", "count_*")),
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
    counters: Sequence[str] = (),
) -> Simulation:
    """The simulator of an accelerator's Verilog in a bench, compiled now or found in the cache.

    noise: Verilator begins with noise in whatever the Verilog does not initialise.  counters: its arguments
    for counting what is reached; there is then so much of it that compiling takes longer than any run.
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
    if counters:
        style = replace(style, verilator=(*style.verilator, *counters), optimise="-O0")
    return build(tools, source, top, style=style)


def simulate(
    simulation: Simulation,
    session: Session,
    memory: Memory,
    folder: Path,
    *,
    bus: Bus | None = None,
    dump: bool = False,
    registers: bool = False,
    progress: Callable[[int], None] | None = None,
    plusargs: Sequence[str] = (),
) -> list[tuple[Outcome | None, str | None]]:
    """Do all runs; return the outcome of each (None if abandoned or stuck) and its fault, None if it passed.

    bus: how the memory answers, if not as the session says.  dump: leave what the units computed in
    ``folder``, :func:`sim.words.dumped`.  registers: try them behind the runs; RunFailed if that fails.
    progress: called with cycles.  plusargs: more of them for the simulator.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    session = session if bus is None else replace(session, bus=bus)
    told = [*plusargs, *prepared(session, memory, folder, dump=dump)]
    names = run_names(session)
    more = register_names() if registers else []
    module = ",".join((MODULE, REGISTERS) if registers else (MODULE,))
    with watched(folder / PROGRESS_FILE, progress):
        faults = run_tests(
            simulation, module, [*names, *more], folder, env={JOB_VARIABLE: str(folder)}, plusargs=told
        )
    wrong = {name: faults[name] for name in more if faults[name] is not None}
    if wrong:
        raise RunFailed(f"Registers: {wrong}")
    return [(Outcome.read(folder, index), faults[name]) for index, name in enumerate(names)]


def prepared(session: Session, memory: Memory, folder: Path, *, dump: bool = False) -> list[str]:
    """Write what the testbench reads into a folder, in which it must run; return the simulator's plusargs."""
    session.write(folder)
    memory.write(folder / "memory.bin")
    told = [f"+memory={folder / 'memory.bin'}", f"+words={memory.words}"]
    return [*told, *(["+dump=./"] if dump else [])]


def run_names(session: Session) -> list[str]:
    """Full names of the tests that are the session's runs."""
    return [f"{MODULE}.runs/index={index}" for index in range(len(session.runs))]


def register_names() -> list[str]:
    """Full names of the tests of the registers, which do the session's first run, too."""
    return [f"{REGISTERS}.{name}" for name in REGISTER_TESTS]
