# SPDX-License-Identifier: Apache-2.0
"""Programs for the machine, by hand and compiled, and runs of them."""

import numpy as np

from golden.accelerator import AcceleratorSpec
from golden.machine import Machine
from golden.program import Instruction, Op, Wait, instruction_words, parameter_words
from qvit_hw.compiler.layout import Layout, fitted
from qvit_hw.compiler.schedule import compile_network
from qvit_hw.compiler.stages import recognise
from qvit_hw.small_networks import BASE2

MEMORIES = ("features", "queries", "keys", "values", "stream", "scores", "codes")
ONE = {"tokens": 1, "depth": 1, "blocks": 1, "clamp": 8}
"""Operands of the smallest product."""


def small_spec(size: int = 4, **more) -> AcceleratorSpec:
    """An accelerator with memories of a few words."""
    depths = {**dict.fromkeys(MEMORIES, 128), "outputs": 16, "max_tokens": 16}
    return AcceleratorSpec(**{"size": size, "softmax": BASE2, **depths, **more})


def program(spec: AcceleratorSpec, *parts, image_words: int = 0, end: bool = True) -> np.ndarray:
    """A stream of instructions, (op, wait, operands, payload) each, between HEAD and END."""
    head = {"fingerprint": spec.fingerprint, "image_words": image_words}
    ends = [(Op.END, 0, {}, None)] if end else []
    words = []
    for op, wait, operands, payload in [(Op.HEAD, 0, head, None), *parts, *ends]:
        instruction = Instruction(op, Wait(wait), {name: int(x) for name, x in operands.items()})
        words.append(instruction_words(instruction, spec.size))
        if payload is not None:
            words.append(payload)
    return np.concatenate(words)


def block_words(size, bias, multiplier, shift, align, weight=None) -> np.ndarray:
    """Payload of a column block; weight [depth, columns, inputs]."""
    words = [parameter_words(bias, multiplier, shift, align)]
    if weight is not None:
        words.append(np.asarray(weight).astype(np.int8).view(np.uint8).reshape(-1, size))
    return np.concatenate(words)


def element_range(spec, memory):
    """Least and largest element of a memory."""
    if memory == "codes":
        return 0, spec.softmax.last_code
    bits = {"stream": spec.stream_bits, "scores": spec.softmax.score_bits}.get(memory, 8)
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def filled(spec, seed=0):
    """A machine whose memories hold random elements, and the list of what it tells."""
    events = []
    machine, rng = Machine(spec, events.append), np.random.default_rng(seed)
    for memory in MEMORIES:
        low, high = element_range(spec, memory)
        machine.memory[memory][:] = rng.integers(low, high + 1, machine.memory[memory].shape)
    machine._frac = spec.softmax.frac_bits
    machine._table[:] = rng.integers(-128, 128, len(machine._table))
    return machine, events


def run(machine, *parts):
    """A program of these parts, without an image."""
    spec = machine.spec
    return machine.run(program(spec, *parts), np.zeros((0, spec.size), np.uint8))


def compiled(model, size, **more):
    """A program for an accelerator that is no larger than the network needs."""
    network = recognise(model)
    least = dict.fromkeys(Layout(network, size).needs, 16)
    return compile_network(model, fitted(network, AcceleratorSpec(size=size, **least, **more)))


def executed(program, image):
    """What the machine tells of a program, and its result."""
    events = []
    machine = Machine(program.spec, events.append)
    return events, program.result(machine.run(program.words, program.image_words(image)))
