# SPDX-License-Identifier: Apache-2.0
"""Instructions as bytes: fields that do not overlap, values that come back, and what has no place."""

from itertools import combinations

import numpy as np
import pytest

from golden.program import (
    FIELDS,
    INSTRUCTION_BYTES,
    OPERANDS,
    PARAMETER_WORDS,
    Instruction,
    Op,
    Wait,
    instruction_words,
    parameter_words,
    record_words,
)


def ends(name):
    field = FIELDS[name]
    low = -(1 << (field.bits - 1)) if field.signed else 0
    return low, low + (1 << field.bits) - 1


@pytest.mark.parametrize("op", Op)
@pytest.mark.parametrize("which", [0, 1])
def test_every_field_comes_back_at_both_ends(op, which):
    operands = {name: ends(name)[which] for name in OPERANDS[op]}
    wait = Wait(7 * which)
    found = Instruction.from_bytes(Instruction(op, wait, operands).to_bytes())
    assert (found.op, found.wait, dict(found.operands)) == (op, wait, operands)


@pytest.mark.parametrize("op", Op)
def test_no_field_touches_another(op):
    plain = Instruction(op).to_bytes()
    masks = []
    for name in ("wait", *OPERANDS[op]):
        wait = Wait(7) if name == "wait" else Wait(0)
        full = {} if name == "wait" else {name: -1 if FIELDS[name].signed else ends(name)[1]}
        bits = int.from_bytes(Instruction(op, wait, full).to_bytes(), "little")
        masks.append(bits ^ int.from_bytes(plain, "little"))
    assert all(masks)
    assert not any(a & b for a, b in combinations(masks, 2))
    assert max(masks).bit_length() <= 8 * INSTRUCTION_BYTES


@pytest.mark.parametrize("name", ["tokens", "zero_in", "gain", "clamp"])
@pytest.mark.parametrize("beyond", [-1, 1])
def test_a_value_beyond_its_field_is_refused(name, beyond):
    low, high = ends(name)
    value = high + 1 if beyond > 0 else low - 1
    with pytest.raises(ValueError, match=f"^{name} must be from {low} to {high}, not {value}$"):
        Instruction(Op.MULTIPLY, operands={name: value})


def test_operands_of_another_operation_are_refused():
    with pytest.raises(ValueError, match=r"^Operand must be one of \(\), not 'tokens'$"):
        Instruction(Op.END, operands={"tokens": 1})
    with pytest.raises(KeyError):
        Instruction(Op.END)["tokens"]
    with pytest.raises(ValueError, match="is not a valid Op"):
        Instruction.from_bytes(bytes(32))


@pytest.mark.parametrize(("size", "words"), [(4, 8), (8, 4), (16, 2), (32, 1)])
def test_an_instruction_is_32_bytes(size, words):
    found = instruction_words(Instruction(Op.END), size)
    assert found.shape == (words, size)
    assert found.reshape(-1).tolist() == [Op.END, *[0] * 31]


def test_records_are_padded_to_a_word():
    found = record_words([1, 0x1000], [-2, 3], 32)
    assert found.shape == (1, 32)
    assert found.view("<u4")[0].tolist() == [1, 0xFFFFFFFE, 0x1000, 3, 0, 0, 0, 0]
    assert record_words([1], [2], 4).shape == (2, 4)


@pytest.mark.parametrize("size", [4, 32])
def test_parameters_are_transposed_records(size):
    rng = np.random.default_rng(size)
    bias = rng.integers(-(1 << 31), 1 << 31, size)
    multiplier, shift = rng.integers(0, 1 << 24, size), rng.integers(0, 63, size)
    align = rng.integers(0, 8, size)
    words = parameter_words(bias, multiplier, shift, align).astype(np.int64)
    assert words.shape == (PARAMETER_WORDS, size)
    weights = 1 << 8 * np.arange(4)
    assert ((weights @ words[:4] + (1 << 31)) % (1 << 32) - (1 << 31) == bias).all()
    assert (weights[:3] @ words[4:7] == multiplier).all()
    assert (words[7] == shift).all()
    assert (words[8] == align).all()
