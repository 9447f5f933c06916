# SPDX-License-Identifier: Apache-2.0
"""What the files of commands share: options that several commands have, and the call of their work."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["Bundle", "Limit", "PageFolder", "Pretrained", "Simulator", "run_command"]

Bundle = Annotated[Path, typer.Option(help="Folder that calibrate wrote.", show_default=False)]
Limit = Annotated[
    int | None, typer.Option(help="At most so many images, spread evenly.", show_default=False)
]
PageFolder = Annotated[Path, typer.Option(help="Folder for the page and its JSON.")]
Pretrained = Annotated[
    bool, typer.Option("--pretrained", help="Let timm download the model's weights.")
]
Simulator = Annotated[str, typer.Option(help="verilator or icarus.")]


def run_command(command: str, /, **options: Any) -> int:
    """Import the command's module and hand its ``run`` the options; return the exit status."""
    return int(importlib.import_module(f"qvit_hw.{command}").run(**options))
