# SPDX-License-Identifier: Apache-2.0
"""A session that asks the accelerator for all that it can do, in some hundred thousand cycles.

    tried = trial()
    results = tried.simulate(emitted(tried.spec), folder)    # (outcome, fault or None) of each run

Two small networks take turns; between them the runs that end in an error, and those that a reset ends. What
the units compute is compared with golden, word by word, as are outputs, error codes and counters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.accelerator import MEMORIES, AcceleratorSpec
from golden.accelerator_cycles import FIFO_WORDS, timeline
from golden.machine import Event, Machine
from golden.program import INSTRUCTION_BYTES, Error, Instruction, Op, Sink, instruction_words
from golden.vit import VitModel
from qvit_hw.accelerator import registers
from qvit_hw.compiler.layout import fitted
from qvit_hw.compiler.program import Program
from qvit_hw.compiler.schedule import compile_network
from qvit_hw.compiler.stages import recognise
from qvit_hw.compiler.tensors import Recorded, recorded, references, regrouped, replayed
from qvit_hw.small_networks import tiny_network
from qvit_hw.trial_program import UNKNOWN, Scattered, cornered, scattered, unknown_behind
from sim.accelerator import build_bench, prepared, simulate
from sim.session import ALIGNMENT, BASE, Bus, Memory, Outcome, Run, Session
from sim.tools import find
from sim.words import FILES, Wanted, Words

__all__ = [
    "SMALL",
    "Desk",
    "compiled",
    "pictures",
    "refused",
    "trial",
    "two_networks",
    "wanted_words",
    "wide_trial",
]

Pixels = npt.NDArray[np.uint8]
_DEPTHS: dict[str, Any] = dict.fromkeys(MEMORIES, 16)
SMALL = AcceleratorSpec(size=4, max_tokens=16, **_DEPTHS)
"""Where :func:`compiled` begins to make memories larger."""
LIMIT = 200_000
"""Cycles that a run may take."""
START = 16
"""Cycles that a run may be from the cycle model, which does not know how the bus begins."""


@dataclass
class Desk:
    """A session that is being written: programs and images in memory, runs of them, words to compare."""

    spec: AcceleratorSpec
    bus: Bus = field(default_factory=Bus)
    runs: list[Run] = field(default_factory=list)
    wanted: dict[int, Wanted] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.memory = Memory(self.spec.size)
        self._placed: dict[bytes, int] = {}
        self._known: dict[tuple[int, int], Wanted] = {}

    @property
    def session(self) -> Session:
        """What the testbench is told."""
        return Session(*registers(self.spec), self.runs, self.bus, self.spec.outputs * self.spec.size)

    def put(self, words: Pixels) -> int:
        """The address of words [n, L], which come to memory once."""
        key = words.tobytes()
        if key not in self._placed:
            self._placed[key] = self.memory.add(words)
        return self._placed[key]

    def run(
        self,
        program: Program,
        image: Pixels,
        expected: npt.NDArray[np.int64] | None = None,
        words: Pixels | None = None,
        **more: Any,
    ) -> None:
        """A run of ``program``, or of other ``words``; expected: its outputs; more: as in :class:`Run`."""
        self._add(program.words if words is None else words, program.image_words(image), expected, **more)

    def _add(
        self, stream: Pixels, pixels: Pixels, expected: npt.NDArray[np.int64] | None, **more: Any
    ) -> None:
        """A run of words."""
        told: dict[str, Any] = {
            "image_address": self.put(pixels),
            "image_words": len(pixels),
            "program_address": self.put(stream),
            "program_words": len(stream),
            "outputs": 0 if expected is None else len(expected),
            "expected": None if expected is None else expected.tolist(),
            "limit": LIMIT,
        }
        self.runs.append(Run(**told | more))

    def whole(self, model: VitModel, program: Program, image: Pixels, bus: Bus | None = None) -> None:
        """A run of which all is known: outputs, words and counters."""
        key = self.put(program.words), self.put(program.image_words(image))
        if key not in self._known:
            self._known[key] = wanted_words(program, model, image)
        self.wanted[len(self.runs)] = self._known[key]
        expected = model(image[None])[0].reshape(-1)
        steps = [step.instruction for step in program.steps]
        self.run(program, image, expected, counters=counters(steps, self.spec, bus or self.bus), bus=bus)

    def scattered(self, seed: int, bus: Bus | None = None, image_words: int = 6) -> None:
        """A run of a program that no network has, of which all is known."""
        self._made(scattered(self.spec, seed, image_words), bus)

    def cornered(self) -> None:
        """A run of what is solved for the corners of the requantiser and of the residual."""
        self._made(cornered(self.spec), None)

    def _made(self, made: Scattered, bus: Bus | None) -> None:
        self.wanted[len(self.runs)] = made.wanted
        counted = counters(made.steps, self.spec, bus or self.bus)
        self._add(made.words, made.image, made.outputs, counters=counted, bus=bus)

    def across(self, bit: int, part: str) -> None:
        """A run that only loads words, whose image or program (``part``) lies across a multiple of 2**bit.

        It says that the program is longer than it is, by a power of two: that much is never read.
        """
        rng = np.random.default_rng(bit)
        image, loaded = (rng.integers(0, 256, (41 + bit, self.spec.size), dtype=np.uint8) for _ in range(2))
        head = {"fingerprint": self.spec.fingerprint, "image_words": len(image)}
        load = {"sink": Sink.FEATURES, "count": len(loaded)}
        steps = Instruction(Op.HEAD, 0, head), Instruction(Op.LOAD, 0, load), Instruction(Op.END)
        words = [instruction_words(each, self.spec.size) for each in steps]
        program = np.concatenate([*words[:2], loaded, *words[2:]])
        across = image if part == "image" else program
        shift = ((1 << bit) - self.put(across) - across.size // 2) // ALIGNMENT * ALIGNMENT
        more = {"program_words": len(program) // 2 + (1 << 8 + bit % 24), "shy": bool(bit & 1)}
        self._add(program, image, None, shift=shift, bus=Bus(8, 40, bit), **more)

    def prepared(self, folder: Path) -> list[str]:
        """Write all that the testbench reads into a folder; return the simulator's plusargs."""
        Wanted.write(folder, self.spec, self.wanted)
        return prepared(self.session, self.memory, folder, dump=True)

    def simulate(
        self, verilog: str, folder: Path, simulator: str = "verilator", **more: Any
    ) -> list[tuple[Outcome | None, str | None]]:
        """Outcome and fault of each run on this Verilog; more: as in :func:`sim.accelerator.simulate`."""
        (folder / "run").mkdir(parents=True, exist_ok=True)
        simulation = build_bench(find(simulator), verilog, self.spec, folder)
        if self.wanted:
            Wanted.write(folder / "run", self.spec, self.wanted)
            more["dump"] = True
        return simulate(simulation, self.session, self.memory, folder / "run", **more)


def counters(steps: Sequence[Instruction], spec: AcceleratorSpec, bus: Bus) -> dict[str, tuple[int, int]]:
    """The least and the most of what a run counts, by the cycle model; cycles where the bus is not random."""
    run = timeline(steps, spec, steps[0]["image_words"], latency=bus.latency)
    passes = sum(s["tokens"] * s["depth"] * s["blocks"] for s in steps if s.op.name == "MULTIPLY")
    found = {"array_busy": (passes, passes)}
    for unit in ("layernorm", "softmax"):
        found[f"{unit}_busy"] = (run.busy(unit), run.busy(unit))
    if not (bus.seed or bus.gaps):
        found["cycles"] = (run.cycles - START, run.cycles + START)
        found["unit_wait"] = (run.waited, run.waited)
    return found


def wanted_words(program: Program, model: VitModel, image: Pixels) -> Wanted:
    """What the units must compute of an image: golden's tensors, at the words that hold them."""
    events: list[Event] = []
    Machine(program.spec, events.append).run(program.words, program.image_words(image))
    shapes = {name: getattr(recorded(program, events), name).shape for name in FILES}
    ends = np.cumsum([0, *(np.prod(shape) for shape in shapes.values())])
    # Each element of a word is its own number: regrouped, they tell where a tensor's elements are.
    numbers = {
        name: np.arange(begin, end).reshape(shape)
        for (name, shape), begin, end in zip(shapes.items(), ends, ends[1:], strict=False)
    }
    places = regrouped(program, replayed(program, Recorded(**numbers)))
    values, meant = np.zeros(ends[-1], np.int64), np.zeros(ends[-1], np.bool_)
    for name, tensor in references(program, model, image).items():
        values[places[name]], meant[places[name]] = tensor, True
    words = Words(**{name: values[at] for name, at in numbers.items()})
    return Wanted(words, {name: meant[at] for name, at in numbers.items()})


def compiled(models: Sequence[VitModel], spec: AcceleratorSpec = SMALL) -> list[Program]:
    """Programs of networks, for one accelerator that takes all of them."""
    for model in models:
        spec = fitted(recognise(model), spec)
    return [compile_network(model, spec) for model in models]


def pictures(program: Program, count: int = 2, seed: int = 0) -> Pixels:
    """Random images for a program."""
    image = program.image
    shape = (count, image.channels, image.height, image.width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def two_networks() -> list[VitModel]:
    """Two networks of different shape: logits of two prefix tokens; codes of one, and more heads."""
    return [tiny_network(), tiny_network(heads=(4,), prefix=1, head=False, seed=1)]


def trial() -> Desk:
    """All runs, those first that are short and find much."""
    models = two_networks()
    programs = compiled(models)
    desk = Desk(programs[0].spec)
    first, second = (
        (model, program, *pictures(program)) for model, program in zip(models, programs, strict=True)
    )
    model, program, image, other = second
    desk.whole(model, program, image)
    desk.whole(first[0], first[1], first[2])
    desk.cornered()
    for seed in range(1, 4):
        desk.scattered(seed)
    for seed in (20, 21):  # the most words that an image may have, and a number with every bit below it
        desk.scattered(seed, image_words=desk.spec.limits["image_words"] + 20 - seed)
    refused(desk, model, program, image)
    for seed, bus in enumerate((Bus(60, 100, 4), Bus(1, 60), Bus(1, 150), Bus(16, 150), Bus(100, 60)), 4):
        desk.scattered(seed, bus, image_words=16)
    for bus in (Bus(latency=1), Bus(latency=200), Bus(200, 128, 1), Bus(7, 30, 3)):
        desk.whole(model, program, other, bus)
    for cycles in (1, 30, 300, 1000, 2000):
        desk.run(program, image, abandon=cycles)
        desk.whole(model, program, other)
    interrupted(desk, program, image)
    desk.whole(first[0], first[1], first[3], Bus(50, 200, 2))
    far(desk)
    return desk


def wide_trial() -> Desk:
    """Likewise of an accelerator to base sqrt 2, with a stream of 16 bits and GELU of 10."""
    model = tiny_network(wide=True, heads=(2, 4), prefix=1)
    (program,) = compiled([model])
    desk = Desk(program.spec)
    image, other = pictures(program)
    desk.whole(model, program, image)
    desk.cornered()
    for seed in range(1, 4):
        desk.scattered(seed)
    for seed in (20, 21):  # the most words that an image may have, and a number with every bit below it
        desk.scattered(seed, image_words=desk.spec.limits["image_words"] + 20 - seed)
    for seed, bus in enumerate((Bus(60, 100, 4), Bus(1, 60), Bus(1, 150), Bus(16, 150), Bus(100, 60)), 4):
        desk.scattered(seed, bus, image_words=16)
    refused(desk, model, program, image)
    for bus in (Bus(latency=1), Bus(latency=200), Bus(7, 30, 3)):
        desk.whole(model, program, other, bus)
    interrupted(desk, program, image)
    desk.run(program, image, abandon=300)
    desk.whole(model, program, other)
    desk.run(program, image, abandon=3000)
    far(desk)
    return desk


def interrupted(desk: Desk, program: Program, image: Pixels) -> None:
    """Runs that are no whole ones, behind a reset and behind an error."""
    ended: list[dict[str, Any]] = [{"program_words": n, "error": Error.ENDED} for n in (15, 16)]
    most = desk.spec.limits["image_words"]
    # Without its highest bit the number is too large still, or just what the program wants.
    few, high = len(program.image_words(image)), [1 << bit for bit in range(most.bit_length(), 32)]
    beyond = [bit | words for bit in high for words in (most | 1, few)]
    long = [{"image_words": words, "error": Error.IMAGE} for words in beyond]
    for more in (*ended, {"abandon": 50}, {"abandon": 20}, *ended, *long):
        desk.run(program, image, **more)


def far(desk: Desk) -> None:
    """Runs across every bit of an address; behind the last program lies what is asked for beyond it."""
    for bit in range(12, 64):
        for part in ("image", "program"):
            desk.across(bit, part)
    desk.put(np.zeros((2 * FIFO_WORDS, desk.spec.size), np.uint8))


def refused(desk: Desk, model: VitModel, program: Program, image: Pixels) -> None:
    """Runs that end with every error there is; behind each of them the next run is whole."""
    size, pixels = program.spec.size, len(program.image_words(image))
    head = -(-INSTRUCTION_BYTES // size)
    foreign, headless, unknown = (program.words.copy() for _ in range(3))
    foreign.reshape(-1)[8] ^= 1  # a bit of the fingerprint
    headless.reshape(-1)[0] = 7
    unknown.reshape(-1)[head * size] = UNKNOWN
    half, most = len(program.words) // 2, program.words[:-1]
    for words, error in (
        (foreign, Error.CONFIGURATION),
        (headless, Error.HEAD),
        (unknown, Error.OPERATION),
        (program.words[:half], Error.ENDED),
        (most, Error.ENDED),
    ):
        desk.run(program, image, words=words, error=error)
        desk.whole(model, program, image)
    edges: tuple[tuple[dict[str, Any], Error], ...] = (
        ({"image_words": pixels - 1}, Error.IMAGE),
        ({"image_words": 0}, Error.IMAGE),
        ({"program_words": 0}, Error.ENDED),
        ({"program_address": BASE - 4096}, Error.BUS),
        ({"image_address": BASE + (1 << 40)}, Error.BUS),
    )
    for more, error in edges:
        desk.run(program, image, error=error, **more)
        desk.whole(model, program, image)
    for op, tokens in ((Op.LAYERNORM, 9), (Op.SOFTMAX, 9), *((Op.MULTIPLY, 1 << bit) for bit in range(7))):
        words = unknown_behind(program.spec, op, tokens, pixels)
        desk.run(program, image, words=words, error=Error.OPERATION)
        desk.whole(model, program, image)
