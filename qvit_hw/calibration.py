# SPDX-License-Identifier: Apache-2.0
"""From a float network and images to the calibrated model: every method a preset names, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from qvit_hw.calibrated import CalibratedModel
from qvit_hw.correction import attention_gains, correct_bias
from qvit_hw.network import Network
from qvit_hw.observation import Observations, observe, observe_inputs
from qvit_hw.plan import make_plan
from qvit_hw.presets import Preset
from qvit_hw.quantize import plan_softmax

__all__ = ["CORRECTION_IMAGES", "Watch", "calibrate_network"]

CORRECTION_IMAGES = 32
"""At most so many images correct biases: they run at once."""

Watch = Callable[[str, int], Callable[[int], None]]
"""Gets the name and the length of a long part, and returns what counts its steps."""


def calibrate_network(
    network: Network,
    images: Tensor,
    preset: Preset,
    observer: str = "minmax",
    affine: str = "dyadic",
    bits: Mapping[str, int] | None = None,
    watch: Watch | None = None,
) -> tuple[CalibratedModel, Observations]:
    """Observe a float network on uint8 images and quantise it.

    ``bits``: widths of single weights and tensors, see :func:`qvit_hw.plan.make_plan`.
    """

    def told(what: str, steps: int) -> Callable[[int], None] | None:
        return None if watch is None else watch(what, steps)

    count = len(images)
    seen = observe(network, images, preset, observer, progress=told("observing", 2 * count))
    spec, _ = plan_softmax(seen.peaks, preset.softmax_spec())
    gains = attention_gains(network, images, spec, told("gains of attention", count))
    moments = None
    if preset.weights != "minmax":
        moments = observe_inputs(network, images, progress=told("inputs of weights", count))
    plan = make_plan(network, seen, preset, affine, bits, gains, moments)
    calibrated = CalibratedModel(network, plan)
    if preset.correct_bias:
        some = images[:CORRECTION_IMAGES]
        correct_bias(calibrated, some, told("correcting biases", len(network.nodes)))
    return calibrated, seen
