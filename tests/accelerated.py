# SPDX-License-Identifier: Apache-2.0
"""Programs by hand for the machine."""

import numpy as np

from golden.accelerator import AcceleratorSpec
from golden.program import Instruction, Op, Wait, instruction_words, parameter_words
from qvit_hw.small_networks import BASE2


def small_spec(size: int = 4, **more) -> AcceleratorSpec:
    """An accelerator with memories of a few words."""
    memories = ("features", "queries", "keys", "values", "stream", "scores", "codes")
    depths = {**dict.fromkeys(memories, 128), "outputs": 16, "max_tokens": 16}
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
