# SPDX-License-Identifier: Apache-2.0
"""One simulator process for many mutants: each is a child of it that begins where this test ends.

Listed before other testbenches, whose tests then run as they are, once in each child with its mutant chosen,
and at last in this process itself with none, which is the control run. cocotb stops a child at its first
failure (COCOTB_MAX_FAILURES) and leaves its results in the child's own file. A child that ends without
results has crashed; one that takes too much time of the processor is ended and noted by a file.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import cocotb
import cocotb.simulator

from sim.bench import JOB_VARIABLE
from sim.mutants import ORDER_FILE, RESULTS_VARIABLE, child_folder, note_stuck

ORDER = json.loads((Path(os.environ[JOB_VARIABLE]) / ORDER_FILE).read_text(encoding="utf-8"))
LISTED = ("job.json", "job.npz", "session.json", "memory.bin", "words.npz")
"""Files of a job that a testbench reads; a child has them, too, and writes where no other does."""
LIMIT = resource.getrlimit(resource.RLIMIT_CPU)[1]
"""Seconds of the processor that a process may take at all."""
UNMADE = 77
"""Status of a child that could not become its mutant."""
BUSY = 20
"""So many times its seconds may go by on the clock before a child is given up: others work here, too."""


@cocotb.test(stage=-1)
async def choose(dut: Any) -> None:
    """Make a child for every mutant, so many at a time; be the control run once all have ended."""
    enough = LIMIT == resource.RLIM_INFINITY or ORDER["seconds"] < LIMIT
    assert enough, f"the limit of processor time must be over {ORDER['seconds']} s, not {LIMIT} s"
    folder = Path(os.environ[JOB_VARIABLE])
    running: dict[int, tuple[int, float]] = {}
    waiting = list(ORDER["mutants"])
    while waiting or running:
        while waiting and len(running) < ORDER["jobs"]:
            number = waiting.pop(0)
            child = os.fork()
            if child == 0:
                try:
                    _become(dut, number, folder)
                except BaseException:
                    os._exit(UNMADE)
                return
            running[child] = number, time.monotonic()
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            number, _ = running.pop(child)
            made = not os.WIFEXITED(status) or os.WEXITSTATUS(status) != UNMADE
            assert made, f"mutant {number} was not made"
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
                note_stuck(folder, number)
            continue
        for child, (number, begun) in running.items():
            if time.monotonic() - begun > BUSY * ORDER["seconds"]:
                note_stuck(folder, number)
                os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def _become(dut: Any, number: int, folder: Path) -> None:
    """Be a mutant: its number in the design, a folder of its own, no word on the log."""
    # A limit in time on the clock would count a mutant as found because the machine is busy.
    resource.setrlimit(resource.RLIMIT_CPU, (ORDER["seconds"], LIMIT))
    mine = child_folder(folder, number)
    mine.mkdir()
    for name in LISTED:
        if (folder / name).exists():
            (mine / name).symlink_to(folder / name)
    os.environ[JOB_VARIABLE] = str(mine)
    os.environ[RESULTS_VARIABLE] = str(mine / "results.xml")
    os.chdir(mine)  # where the design's own files go
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    # The simulator's own end waits for threads that a child does not have.
    vars(cocotb.simulator)["stop_simulator"] = lambda: os._exit(0)
    for name in ORDER["control"].split("."):
        dut = getattr(dut, name)
    dut.value = number
