# SPDX-License-Identifier: Apache-2.0
"""A compiled network on the emitted Verilog, called as a function of images.

    accelerator = Accelerator("program")                # a folder that compile wrote
    logits = accelerator.predict(images)                # int64 [B, classes] of uint8 [B, C, H, W]

The Verilog is emitted and its simulator built the first time that they are needed; both are kept in the
cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

import golden
import rtl
from golden.accelerator import AcceleratorSpec
from golden.accelerator_cycles import timeline
from qvit_hw.compile import TOP
from qvit_hw.compiler.program import Program
from qvit_hw.errors import MissingTool, UserError
from sim.accelerator import build_bench, simulate
from sim.runner import RunFailed, Simulation, cache_folder
from sim.session import Bus, Memory, Outcome, Run, Session
from sim.tools import SIMULATORS, ToolMissing, find
from sim.words import Words, dumped

__all__ = ["Accelerator", "Execution", "emitted", "registers"]

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Execution:
    """An image that went through: what was read (None if it never came to an end), what was wrong.

    words: what the units computed, if it was asked for.
    """

    outcome: Outcome | None
    fault: str | None
    words: Words | None = None

    @property
    def outputs(self) -> npt.NDArray[np.int64] | None:
        """The network's output."""
        return None if self.outcome is None else np.array(self.outcome.outputs, np.int64)


class Accelerator:
    """A program and a simulator of the hardware that it was made for."""

    def __init__(
        self, program: Program | Path | str, *, simulator: str = "verilator", bus: Bus | None = None
    ) -> None:
        """``bus``: how the memory answers. UserError for a program or a simulator that will not do."""
        if simulator not in SIMULATORS:
            raise UserError(f"Simulator must be {' or '.join(SIMULATORS)}, not {simulator!r}.")
        self.program = program if isinstance(program, Program) else Program.load(program)
        self.simulator, self.bus = simulator, bus or Bus()

    @cached_property
    def simulation(self) -> Simulation:
        """The simulator, built if it is not there; MissingTool if it cannot be."""
        try:
            tools = find(self.simulator)
        except ToolMissing as error:
            raise MissingTool(f"{error}.") from error
        verilog = emitted(self.program.spec)
        with tempfile.TemporaryDirectory(prefix="qvit-") as folder:
            try:
                return build_bench(tools, verilog, self.program.spec, Path(folder))
            except RunFailed as error:
                raise UserError(f"The accelerator does not compile: {error}") from error

    @cached_property
    def predicted_cycles(self) -> int:
        """What the cycle model says of an image."""
        program = self.program
        steps = [step.instruction for step in program.steps]
        words = steps[0]["image_words"]
        return timeline(steps, program.spec, words, latency=self.bus.latency).cycles

    def predict(self, images: Pixels) -> npt.NDArray[np.int64]:
        """Outputs int64 [B, classes] of images uint8 [B, C, H, W]; UserError if the hardware fails."""
        outputs = []
        for number, execution in enumerate(self.run(images)):
            if execution.fault is not None or execution.outputs is None:
                raise UserError(f"Image {number} did not come through: {execution.fault}.")
            outputs.append(execution.outputs)
        return np.stack(outputs)

    def run(
        self,
        images: Pixels,
        *,
        expected: Sequence[npt.NDArray[np.int64]] | None = None,
        watch: bool = False,
        folder: Path | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Execution]:
        """Send images through, one after the other on the same hardware.

        expected: their outputs; a difference is a fault.  watch: keep every word that the units compute.
        folder: for the simulator's files, which are large; else they go.  progress: called with cycles.
        """
        if not len(images):
            raise ValueError("Images must be at least one, not none")
        program, memory = self.program, Memory(self.program.spec.size)
        place = memory.add(program.words)
        slow = 256 / (256 - self.bus.gaps)
        runs = []
        for number, image in enumerate(images):
            words = program.image_words(image)
            runs.append(
                Run(
                    image_address=memory.add(words),
                    image_words=len(words),
                    program_address=place,
                    program_words=len(program.words),
                    outputs=program.output[1],
                    expected=None if expected is None else expected[number].tolist(),
                    limit=round(10 * slow * self.predicted_cycles) + 100_000,
                )
            )
        session = Session(*registers(program.spec), runs)
        with contextlib.ExitStack() as stack:
            if folder is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qvit-")))
            try:
                results = simulate(
                    self.simulation,
                    session,
                    memory,
                    folder,
                    bus=self.bus,
                    dump=watch,
                    progress=progress,
                )
                return [
                    Execution(*result, dumped(folder, number, program.spec) if watch else None)
                    for number, result in enumerate(results)
                ]
            except RunFailed as error:
                raise UserError(f"Simulation failed: {error}") from error


def registers(spec: AcceleratorSpec) -> tuple[dict[str, int], dict[str, int]]:
    """Offsets of the registers by name, and what some of them always read as."""
    from rtl.control import IDENTITY, MAP_VERSION, REGISTERS

    fixed = {
        "id": IDENTITY,
        "version": MAP_VERSION,
        "fingerprint_low": spec.fingerprint & 0xFFFFFFFF,
        "fingerprint_high": spec.fingerprint >> 32,
        "size": spec.size,
    }
    return {register.name: register.offset for register in REGISTERS}, fixed


def emitted(spec: AcceleratorSpec) -> str:
    """The accelerator's Verilog, emitted now or found in the cache.

    Emitting takes most of a minute, and depends on nothing but our own sources and the packages' versions.
    """
    from rtl.accelerator import Accelerator as Component
    from rtl.emit import emit, tool_versions

    told = hashlib.sha256(repr((spec, tool_versions(), TOP)).encode())
    for package in (golden, rtl):
        for path in sorted(Path(package.__path__[0]).glob("*.py")):
            told.update(path.read_bytes())
    folder = cache_folder() / "verilog"
    target = folder / f"{told.hexdigest()[:32]}.v"
    with contextlib.suppress(OSError):
        return target.read_text(encoding="utf-8")
    text = emit(Component(spec), TOP)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
        file.write(text)
    Path(file.name).replace(target)
    return text
