# SPDX-License-Identifier: Apache-2.0
"""Presets: the widths and code bases that calibration offers by name, in one table.

======== ======== ============ ============== ========== ============================================
name     residual weights,     attention code score      for
         (PTF)    activations                 bits, F
======== ======== ============ ============== ========== ============================================
w8a8p4   8 bits   int8         base 2, 4 bits 12, 4      the default: the smallest unit
w8a8p5   8 bits   int8         base sqrt 2, 5 12, 4      A.V 6 dB closer, codes one bit wider
======== ======== ============ ============== ========== ============================================

Score bits grow up to 16 where a network's scores would saturate. Either preset goes with both
affine steps of LayerNorm: ``dyadic`` (a multiplier per lane) and ``shift`` (none; gamma's rest is folded
into the linear layer that follows).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from golden.layernorm import LayerNormSpec
from golden.softmax import SoftmaxSpec
from qvit_hw.errors import UserError

__all__ = ["AFFINES", "DEFAULT", "PRESETS", "Preset", "find_preset"]

AFFINES = ("dyadic", "shift")
DEFAULT = "w8a8p4"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Widths of a calibrated network.

    weight_bits and act_bits: symmetric weights, activations between operators.  residual_bits and
    max_shift: the PTF codes of the residual stream.  The rest: see :class:`SoftmaxSpec`.
    """

    name: str
    base: Literal["2", "sqrt2"] = "2"
    code_bits: int = 4
    score_bits: int = 12
    frac_bits: int = 4
    weight_bits: int = 8
    act_bits: int = 8
    residual_bits: int = 8
    max_shift: int = 3

    def layernorm_spec(self, affine: str) -> LayerNormSpec:
        """Spec of the LayerNorm unit; UserError for an unknown affine step."""
        if affine not in AFFINES:
            raise UserError(f"Affine must be one of {', '.join(AFFINES)}, not {affine!r}.")
        return LayerNormSpec(
            in_bits=self.residual_bits,
            out_bits=self.act_bits,
            max_shift=self.max_shift,
            affine=cast(Literal["dyadic", "shift"], affine),
        )

    def softmax_spec(self) -> SoftmaxSpec:
        """Spec of the softmax unit."""
        return SoftmaxSpec(
            base=self.base,
            code_bits=self.code_bits,
            score_bits=self.score_bits,
            frac_bits=self.frac_bits,
        )


PRESETS = {
    preset.name: preset
    for preset in (Preset(name="w8a8p4"), Preset(name="w8a8p5", base="sqrt2", code_bits=5))
}


def find_preset(name: str) -> Preset:
    """Return the preset of this name ("default" is one, too); UserError for an unknown one."""
    name = DEFAULT if name == "default" else name
    if name not in PRESETS:
        raise UserError(f"Preset must be one of {', '.join(PRESETS)}, not {name!r}.")
    return PRESETS[name]
