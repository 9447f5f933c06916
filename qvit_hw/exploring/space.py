# SPDX-License-Identifier: Apache-2.0
"""What can be chosen, and the commands that build a choice.

A preset brings the methods of calibration (rounding of weights, scales per channel); every width, the base,
the affine step and the lanes are chosen on their own. Whatever is chosen is an option of ``calibrate`` or
``generate``: :func:`commands` says how to build exactly that.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvit_hw.errors import UserError
from qvit_hw.presets import AFFINES, SETTINGS, Preset, find_preset, with_settings

__all__ = [
    "SPACE",
    "Choice",
    "Origin",
    "Space",
    "chosen_preset",
    "commands",
    "narrowed",
    "settings_of",
    "starts",
]

Choice = Mapping[str, Any]
"""A value for every name of SPACE."""
Space = Mapping[str, tuple[Any, ...]]
"""The values that there are, by name."""

SPACE: Space = {
    "preset": ("w8a8p4", "w8a8p5", "w6a6", "w4a8", "w4a4"),
    "affine": AFFINES,
    "lanes": (1, 2, 4, 8),
    "base": ("2", "sqrt2"),
    "code_bits": (3, 4, 5, 6),
    "score_bits": (10, 12, 14),
    "frac_bits": (3, 4, 5),
    "exp_bits": (12, 15, 18),
    "log_index_bits": (6, 8, 10),
    "table_bits": (4, 6),
    "weight_bits": (3, 4, 6, 8),
    "act_bits": (4, 6, 8),
    "gelu_bits": (8, 10),
    "residual_bits": (8, 12, 16),
}


def _start(name: str, affine: str, lanes: int) -> dict[str, Any]:
    preset = find_preset(name)
    widths = {key: getattr(preset, key) for key in SPACE if key in SETTINGS}
    return {"preset": name, "affine": affine, "lanes": lanes, **widths}


def starts(space: Space = SPACE) -> list[Choice]:
    """Where a search begins: the presets as they are, with either affine step, at most and fewest lanes.

    Those that a narrower space does not have are left out.
    """
    pairs = ((AFFINES[0], max(space["lanes"])), (AFFINES[1], min(space["lanes"])))
    found = [_start(name, affine, count) for affine, count in pairs for name in space["preset"]]
    return [each for each in found if all(each[name] in space[name] for name in space)]


def narrowed(lanes: Sequence[int], fixed: Sequence[str]) -> Space:
    """SPACE with these lanes alone and the values held that are given as "NAME=VALUE"; UserError for others.

    A name that is given again has several values.
    """
    space = dict(SPACE)
    given = [("lanes", str(count)) for count in lanes]
    for setting in fixed:
        name, _, value = setting.partition("=")
        if name not in SPACE:
            names = ", ".join(SPACE)
            raise UserError(f"Fixed value must be NAME=VALUE with a name of {names}, not {setting!r}.")
        if not value:
            values = ", ".join(map(str, SPACE[name]))
            raise UserError(f"Fixed value {setting!r} lacks its value: it must be one of {values}.")
        given.append((name, value))
    for name, value in given:
        known = {str(each): each for each in SPACE[name]}
        if value not in known:
            told = name.replace("_", " ").capitalize()
            raise UserError(f"{told} must be one of {', '.join(known)}, not {value}.")
    for name in dict(given):
        wanted = {value for other, value in given if other == name}
        space[name] = tuple(each for each in SPACE[name] if str(each) in wanted)
    return space


@dataclass(frozen=True)
class Origin:
    """The model and images that points are calibrated on; options as of :func:`qvit_hw.calibrate.run`."""

    model: str = "digits"
    checkpoint: Path | None = None
    pretrained: bool = False
    image_size: int | None = None
    images: Path | None = None
    calibration: int = 32

    def arguments(self) -> list[str]:
        """As options of the command line."""
        found = ["--model", self.model]
        if self.checkpoint is not None:
            found += ["--checkpoint", str(self.checkpoint)]
        if self.pretrained:
            found.append("--pretrained")
        if self.image_size is not None:
            found += ["--image-size", str(self.image_size)]
        if self.images is not None:
            found += ["--images", str(self.images)]
        return [*found, "--calibration", str(self.calibration)]


def settings_of(choice: Choice) -> list[str]:
    """What differs from the choice's preset, as ``--set`` of ``calibrate`` takes it."""
    preset = find_preset(choice["preset"])
    return [
        f"{name}={choice[name]}" for name in SETTINGS if choice[name] != getattr(preset, name)
    ]


def chosen_preset(choice: Choice) -> Preset:
    """The preset with the choice's widths."""
    return with_settings(find_preset(choice["preset"]), settings_of(choice))


def commands(choice: Choice, origin: Origin) -> list[str]:
    """The commands that build a choice: its bundle, and the Verilog of its softmax and LayerNorm."""
    calibrate: Sequence[str] = [
        *("qvit-hw", "calibrate", *origin.arguments()),
        *("--preset", choice["preset"], "--affine", choice["affine"]),
        *(part for setting in settings_of(choice) for part in ("--set", setting)),
        *("--out", "bundle"),
    ]
    generate = ["qvit-hw", "generate", "--bundle", "bundle", "--lanes", str(choice["lanes"]), "--out", "rtl"]
    return [shlex.join(calibrate), shlex.join(generate)]
