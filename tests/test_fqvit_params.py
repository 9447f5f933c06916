# SPDX-License-Identifier: Apache-2.0
"""Parameters of FQ-ViT's operators: made from floats as the rationals they are, and refused out of range."""

from fractions import Fraction

import numpy as np
import pytest
from test_fqvit import plain

from golden.fqvit import (
    FRACTION,
    FqLayerNormSpec,
    FqSoftmaxParams,
    FqSoftmaxSpec,
    fq_layernorm,
    fq_requantise,
    fq_softmax,
    layernorm_params,
    softmax_params,
)
from golden.requant import RequantParams, RequantSpec
from qvit_hw import fqvit
from qvit_hw.errors import UserError
from qvit_hw.quantize import Grid, PtfGrid

STREAM = PtfGrid(0.01, -4, np.array([0, 3, 1]), 8)


def test_floats_become_the_rationals_that_they_are() -> None:
    gamma, beta = np.array([0.75, -1.5, 1 / 3]), np.array([0.1, 0.0, -2.0])
    params = fqvit.layernorm_params(gamma, beta, STREAM, Grid(1 / 32, 9, 8))
    assert (params.zero_point, params.out_zero_point) == (-4, 9)
    assert params.shift.tolist() == [0, 3, 1]
    unit = 32 << FRACTION
    assert params.gain.tolist() == [round(Fraction(g) * unit) for g in gamma.tolist()]
    assert params.offset.tolist() == [round(Fraction(b) * unit) for b in beta.tolist()]
    # A half of the last place goes to the even neighbour.
    for weight, whole in ((0.5, 0), (1.5, 2), (2.5, 2)):
        tiny = np.full(3, weight / 2**FRACTION)
        assert (
            fqvit.layernorm_params(tiny, tiny, STREAM, Grid(1.0, 0, 8)).gain.tolist() == [whole] * 3
        )


def test_the_integers_of_iexp_at_a_scale() -> None:
    # 0.6931 / s, 2.70733 / s and 2.79211 / s^2: up, down, down; the scale of issue 21 of FQ-ViT has c = 56.
    assert fqvit.softmax_params(Grid(0.222, 3, 8)) == FqSoftmaxParams(
        octave=4, linear=12, constant=56
    )
    assert softmax_params(Fraction(6931, 20000)).octave == 2
    assert softmax_params(Fraction(6932, 20000)).octave == 2
    assert softmax_params(Fraction(6930, 20000)).octave == 3


@pytest.mark.parametrize(
    ("gamma", "message"),
    [
        (np.array([1.0, np.nan, 1.0]), "Weights of a LayerNorm must be finite numbers"),
        (np.array([1.0, 5000.0, 1.0]), "LayerNorm does not suit this layer: Gain must be from"),
    ],
)
def test_weights_that_do_not_fit_are_the_user_s(gamma: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fqvit.layernorm_params(gamma, np.zeros(3), STREAM, Grid(1.0, 0, 8))


def test_a_scale_that_iexp_cannot_have_is_the_user_s() -> None:
    with pytest.raises(
        UserError, match="softmax does not suit this layer: Scale of scores must be"
    ):
        fqvit.softmax_params(Grid(2.0, 0, 8))


def fails(kind: type[Exception], message: str):  # type: ignore[no-untyped-def]
    return pytest.raises(kind, match=message)


def test_requantise_refuses() -> None:
    params = RequantParams(multiplier=np.array([1 << 15] * 2), shift=np.array([1, 1]), zero_point=0)
    with fails(ValueError, "Channels must be 2, not 3"):
        fq_requantise(np.zeros((1, 3), int), RequantSpec(), params)
    with fails(ValueError, "Accumulator must be from -128 to 127, not 128"):
        fq_requantise(np.array([[0, 128]]), RequantSpec(acc_bits=8), params)
    with fails(TypeError, "Accumulators must be an array of integers"):
        fq_requantise(np.zeros((1, 2)), RequantSpec(), params)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_channels", 4097, "Maximum row length must be from 1 to 4096, not 4097"),
        ("in_bits", 9, "Input width must be from 4 to 8, not 9"),
        ("out_bits", 3, "Output width must be from 4 to 8, not 3"),
        ("max_shift", 4, "Largest PTF shift must be from 0 to 3, not 4"),
    ],
)
def test_layernorm_spec_refuses(field: str, value: int, message: str) -> None:
    with fails(ValueError, message):
        FqLayerNormSpec(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_tokens", 0, "Maximum row length must be from 1 to 4096, not 0"),
        ("score_bits", 17, "Score width must be from 8 to 16, not 17"),
        ("code_bits", 2, "Code width must be from 3 to 6, not 2"),
        ("octaves", 31, "Octaves must be from 16 to 30, not 31"),
    ],
)
def test_softmax_spec_refuses(field: str, value: int, message: str) -> None:
    with fails(ValueError, message):
        FqSoftmaxSpec(**{field: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zero_point": 128}, "Zero point must be from -128 to 127, not 128"),
        ({"out_zero_point": -129}, "Output zero point must be from -128 to 127, not -129"),
        ({"shift": np.zeros((2, 2), int)}, r"Shifts must be 1 to 3072 channels, not \(2, 2\)"),
        ({"shift": np.array([0, 4])}, "PTF shift must be from 0 to 3, not 4"),
        ({"gain": np.array([0])}, r"Gain must have shape \(2,\), not \(1,\)"),
        ({"gain": np.array([0, -(1 << 45)])}, "Gain must be from -17592186044416 to"),
        ({"offset": np.array([0, 1 << 61])}, "Offset must be from -1152921504606846976 to"),
    ],
)
def test_layernorm_refuses_parameters(changes: dict[str, object], message: str) -> None:
    with fails(ValueError, message):
        fq_layernorm(np.array([1, 2]), FqLayerNormSpec(), plain(2, **changes))


def test_layernorm_refuses_rows_and_weights() -> None:
    with fails(ValueError, r"Row length must be 2, not shape \(3,\)"):
        fq_layernorm(np.array([1, 2, 3]), FqLayerNormSpec(), plain(2))
    with fails(ValueError, "Code must be from -128 to 127, not 200"):
        fq_layernorm(np.array([1, 200]), FqLayerNormSpec(), plain(2))
    with fails(TypeError, "Codes must be an array of integers, not float64"):
        fq_layernorm(np.array([1.0, 2.0]), FqLayerNormSpec(), plain(2))
    grid = {"zero_point": 0, "shift": np.array([0]), "out_zero_point": 0}
    with fails(ValueError, r"Output scale must be positive, not Fraction\(0, 1\)"):
        layernorm_params([Fraction(1)], [Fraction(1)], Fraction(0), **grid)  # type: ignore[arg-type]
    with fails(ValueError, "Gain must be from -17592186044416 to 17592186044416, not"):
        layernorm_params([Fraction(4097)], [Fraction(1)], Fraction(1), **grid)  # type: ignore[arg-type]


def test_softmax_refuses() -> None:
    spec, params = FqSoftmaxSpec(max_tokens=4), softmax_params(Fraction(1, 10))
    with fails(ValueError, "Row length must be from 1 to 4, not 5"):
        fq_softmax(np.zeros(5, int), spec, params)
    with fails(ValueError, "Score must be from -128 to 127, not 128"):
        fq_softmax(np.array([128]), spec, params)
    with fails(TypeError, "Scores must be an array of integers, not float64"):
        fq_softmax(np.zeros(4), spec, params)
    with fails(TypeError, "Mask must be an array of booleans, not int64"):
        fq_softmax(np.zeros(4, int), spec, params, np.zeros(4, int))
    for scale in (Fraction(0), Fraction(2)):
        with fails(ValueError, "Scale of scores must be from 2\\*\\*-16 to 1.67, not Fraction"):
            softmax_params(scale)
    for changes, message in (
        ({"octave": 0}, "Octave must be from 1 to 1048576, not 0"),
        ({"linear": 6}, "Linear coefficient must be from 7 to 4194304, not 6"),
        ({"constant": 0}, "Constant must be from 1 to 536870912, not 0"),
    ):
        given = {"octave": 7, "linear": 27, "constant": 279} | changes
        with fails(ValueError, message):
            fq_softmax(np.zeros(4, int), spec, FqSoftmaxParams(**given))
