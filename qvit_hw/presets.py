# SPDX-License-Identifier: Apache-2.0
"""Presets: the widths, code bases and methods that calibration offers by name, in one table.

====== ======= ====== ======== ===== ========== ======= ======= ======== ====== ===========================
name   weights activ. residual GELU  attention  LN out  weights ranges   refit  for
       (bits)  (bits) (PTF)    input code       reparam by      by
====== ======= ====== ======== ===== ========== ======= ======= ======== ====== ===========================
w8a8p4 8       8      8        8     base 2, 4  0       minmax  minmax   0      the smallest units: default
w8a8p5 8       8      16       10    sqrt 2, 5  0.8     minmax  minmax   0      the most accurate
w6a6   6       6      16       10    sqrt 2, 5  0.8     gptq    minmax   0      smaller multipliers
w4a8   4       8      16       10    sqrt 2, 5  0.3     gptq    minmax   0      half the weight memory
w4a4   4       4      16       10    sqrt 2, 5  0.8     gptq    omse     0      as small as it gets
fqvit  8       8      8        10    base 2, 4  0       minmax  minmax   0      golden model only
====== ======= ====== ======== ===== ========== ======= ======= ======== ====== ===========================

The first and the last layer (patch embedding and head) always have 8-bit weights: they are few, and what
they lose nothing behind them can repair. In the presets below 8 bits the residual stream has 16 bits and
the GELU table a 10-bit input: both are read by one unit each and multiply nothing, so they cost memory,
not multipliers, while a 6-bit stream would cost all the accuracy that the other widths leave.

Score bits grow up to 16 where a network's scores would saturate. Every preset goes with both affine steps of
LayerNorm: ``dyadic`` (a multiplier per lane) and ``shift`` (none; gamma's rest is folded into the linear
layer that follows). Sources: FQ-ViT (arXiv 2111.13824) for PTF and base-2 codes, RepQ-ViT (arXiv 2212.08254)
for base sqrt 2 and the re-parameterisation, GPTQ (arXiv 2210.17323) for the weights, GPTAQ (arXiv 2504.02692)
for refitting them to the codes that they get.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from golden.gelu import GeluSpec
from golden.layernorm import LayerNormSpec
from golden.softmax import SoftmaxSpec
from qvit_hw.errors import UserError
from qvit_hw.observers import OBSERVERS
from qvit_hw.weights import METHODS

__all__ = ["AFFINES", "DEFAULT", "PRESETS", "SETTINGS", "Preset", "adapt", "find_preset", "with_settings"]

AFFINES = ("dyadic", "shift")
DEFAULT = "w8a8p4"
SETTINGS: Mapping[str, tuple[int, int] | tuple[str, ...]] = {
    "base": ("2", "sqrt2"),
    "code_bits": (3, 6),
    "score_bits": (8, 16),
    "frac_bits": (2, 6),
    "exp_bits": (12, 18),
    "log_index_bits": (2, 10),
    "table_bits": (4, 9),
    "weight_bits": (3, 8),
    "act_bits": (4, 8),
    "gelu_bits": (4, 10),
    "residual_bits": (8, 16),
}
"""What :func:`with_settings` sets: the range of a width, or the words that there are."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Widths and methods of a calibrated network.

    weight_bits: weights, symmetric per output channel, 3 to 8.  head_bits: those of the patch embedding and
    the head.  act_bits: codes between operators, q, k and v included, 4 to 8.  gelu_bits: input of the
    GELU table, 4 to 10.  residual_bits (8 to 16) and max_shift: PTF codes of the residual stream.  base,
    code_bits, score_bits, frac_bits, exp_bits, log_index_bits: see :class:`SoftmaxSpec`.  table_bits: see
    :class:`LayerNormSpec`.  reparam: LayerNorm's outputs get a scale per
    channel, folded into the layer behind it: 0 none, 1 each its own; clip: within this factor of their mean
    (see :mod:`qvit_hw.quantize`).
    weights: a method of :mod:`qvit_hw.weights`.  observer: of :mod:`qvit_hw.observers`.
    correct_bias, refit (a damping, 0 for none): see :mod:`qvit_hw.correction`.
    golden_only: computed by the golden model, but no Verilog is generated for it.
    """

    name: str
    base: Literal["2", "sqrt2"] = "2"
    code_bits: int = 4
    score_bits: int = 12
    frac_bits: int = 4
    weight_bits: int = 8
    head_bits: int = 8
    act_bits: int = 8
    gelu_bits: int = 8
    residual_bits: int = 8
    max_shift: int = 3
    exp_bits: int = 15
    log_index_bits: int = 8
    table_bits: int = 6
    reparam: float = 0.0
    clip: float | None = None
    weights: Literal["minmax", "omse", "gptq"] = "minmax"
    observer: str = "minmax"
    correct_bias: bool = False
    refit: float = 0.0
    golden_only: bool = False

    def layernorm_spec(self, affine: str) -> LayerNormSpec:
        """Spec of the LayerNorm unit; UserError for an unknown affine step."""
        if affine not in AFFINES:
            raise UserError(f"Affine must be one of {', '.join(AFFINES)}, not {affine!r}.")
        return LayerNormSpec(
            in_bits=self.residual_bits,
            out_bits=self.act_bits,
            max_shift=self.max_shift,
            affine=cast(Literal["dyadic", "shift"], affine),
            table_bits=self.table_bits,
        )

    def softmax_spec(self) -> SoftmaxSpec:
        """Spec of the softmax unit."""
        return SoftmaxSpec(
            base=self.base,
            code_bits=self.code_bits,
            score_bits=self.score_bits,
            frac_bits=self.frac_bits,
            exp_bits=self.exp_bits,
            log_index_bits=self.log_index_bits,
        )

    def gelu_spec(self) -> GeluSpec:
        """Spec of the GELU table."""
        return GeluSpec(in_bits=self.gelu_bits, out_bits=self.act_bits)


_FINE = Preset(
    name="w8a8p5", base="sqrt2", code_bits=5, gelu_bits=10, residual_bits=16, reparam=0.8
)
_SMALL = replace(_FINE, weights="gptq")

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(name="w8a8p4"),
        _FINE,
        replace(_SMALL, name="w6a6", weight_bits=6, act_bits=6),
        replace(_SMALL, name="w4a8", weight_bits=4, reparam=0.3),
        replace(_SMALL, name="w4a4", weight_bits=4, act_bits=4, observer="omse"),
        Preset(name="fqvit", gelu_bits=10, golden_only=True),
    )
}


def find_preset(name: str) -> Preset:
    """Return the preset of this name ("default" is one, too); UserError for an unknown one."""
    name = DEFAULT if name == "default" else name
    if name not in PRESETS:
        raise UserError(f"Preset must be one of {', '.join(PRESETS)}, not {name!r}.")
    return PRESETS[name]


def adapt(
    preset: Preset,
    weights: str | None = None,
    reparam: float | None = None,
    correct_bias: bool = False,
    observer: str | None = None,
    refit: float | None = None,
) -> Preset:
    """Return the preset with other methods; None and False leave the preset's. UserError for one unknown."""
    if weights is not None and weights not in METHODS:
        raise UserError(f"Weights must be one of {', '.join(METHODS)}, not {weights!r}.")
    if reparam is not None and not 0 <= reparam <= 1:
        raise UserError(f"Reparam must be 0 to 1, not {reparam!r}.")
    if refit is not None and not 0 <= refit < math.inf:
        raise UserError(f"Refit must be 0 or a damping above it, not {refit!r}.")
    if observer is not None and observer not in OBSERVERS:
        raise UserError(f"Observer must be one of {', '.join(OBSERVERS)}, not {observer!r}.")
    return replace(
        preset,
        weights=preset.weights if weights is None else cast(Any, weights),
        reparam=preset.reparam if reparam is None else reparam,
        correct_bias=preset.correct_bias or correct_bias,
        observer=observer or preset.observer,
        refit=preset.refit if refit is None else refit,
    )


def with_settings(preset: Preset, settings: Sequence[str]) -> Preset:
    """Return the preset with other widths or another base, each "NAME=VALUE"; UserError for bad ones."""
    found: dict[str, Any] = {}
    for setting in settings:
        name, sign, value = setting.partition("=")
        if not sign or name not in SETTINGS:
            names = ", ".join(SETTINGS)
            raise UserError(f"Setting must be NAME=VALUE with a name of {names}, not {setting!r}.")
        low, high = SETTINGS[name][0], SETTINGS[name][-1]
        if isinstance(low, str):
            if value not in SETTINGS[name]:
                raise UserError(f"Setting {name} must be one of {low}, {high}, not {value!r}.")
            found[name] = value
        else:
            if not (value.isascii() and value.isdecimal() and low <= int(value) <= int(high)):
                raise UserError(f"Setting {name} must be from {low} to {high}, not {value!r}.")
            found[name] = int(value)
    made = replace(preset, **found)
    try:
        made.softmax_spec()
    except ValueError as error:
        raise UserError(f"{error}.") from error
    return made
