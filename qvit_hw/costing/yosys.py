# SPDX-License-Identifier: Apache-2.0
"""Yosys in a process of its own: it prints what it likes there, may crash, and can be stopped.

    python -m qvit_hw.costing.yosys FOLDER

runs the passes of ``FOLDER/script`` (a line each) on a new design; what each prints goes to ``FOLDER/log``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Failed", "cells_below", "execute", "run_passes", "statistics", "stop"]

_running: set[subprocess.Popen[str]] = set()
"""Tools that run now, from whatever thread."""
_POLITE = ("nice", "-n", "5") if shutil.which("nice") else ()
"""A sweep takes every core for minutes: whoever works on the machine comes first."""
_PROJECT = Path(__file__).resolve().parents[2]


class Failed(Exception):
    """A tool ended with an error; told with what it said last, without its full stop."""


def execute(command: Sequence[str], folder: Path, log: str) -> str:
    """Run a tool inside ``folder``, at low priority, and return what it printed; an interrupt ends it.

    log: file of the folder that keeps this.  Failed where the tool's status is not 0.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_PROJECT)}
    process = subprocess.Popen(
        [*_POLITE, *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    _running.add(process)
    try:
        said, _ = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        _running.discard(process)
    (folder / log).write_text(said, encoding="utf-8")
    if process.returncode:
        lines = [line for line in said.splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line] or lines[-1:] or ["nothing said"]
        raise Failed(errors[0].strip().rstrip("."))
    return said


def stop() -> None:
    """End all tools that run, from whatever thread they were started."""
    for process in list(_running):
        process.kill()


def run_passes(passes: Sequence[str], folder: Path) -> None:
    """Run these passes of Yosys inside ``folder``, in which their files are; Failed on an error."""
    (folder / "script").write_text("\n".join(passes) + "\n", encoding="utf-8")
    execute([sys.executable, "-m", "qvit_hw.costing.yosys", "."], folder, "yosys.log")


def statistics(folder: Path, file: str = "stat.json") -> dict[str, Counter[str]]:
    """Cells by type of every module, from what ``stat -json`` left in a file."""
    text = (folder / file).read_text(encoding="utf-8")
    modules: Mapping[str, Any] = json.loads(text[text.index("{") :])["modules"]
    return {
        name.lstrip("\\"): Counter(
            {cell.lstrip("\\"): int(count) for cell, count in module["num_cells_by_type"].items()}
        )
        for name, module in modules.items()
    }


def cells_below(found: Mapping[str, Counter[str]], module: str) -> Counter[str]:
    """Cells of a module and of all modules below it."""
    total: Counter[str] = Counter()
    for cell, count in found[module].items():
        if cell in found:
            for name, inner in cells_below(found, cell).items():
                total[name] += inner * count
        else:
            total[cell] += count
    return total


def _main(folder: Path) -> None:
    from pyosys import libyosys

    design = libyosys.Design()
    for line in (folder / "script").read_text(encoding="utf-8").splitlines():
        libyosys.run_pass(line, design)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
