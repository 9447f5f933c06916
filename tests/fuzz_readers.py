# SPDX-License-Identifier: Apache-2.0
"""Every reader of the product, fed with files that nobody wrote.

    python tests/fuzz_readers.py [--inputs 100000] [--seed 1] [--only NAME] [--out build/fuzz]

Whatever stands in a file, the answer is what the file says, or the documented error in one line; nothing is
executed (an audit hook of the interpreter hears of processes, sockets and files written elsewhere), and a
command that refuses its input leaves nothing behind. The first input that breaks a rule is kept, as small as
Hypothesis can make it. ``make verify`` runs it in full, ``tests/test_fuzz.py`` for a few seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import pickle
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerator_samples import make_program, make_run
from fuzz_edits import Choices, edited
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from PIL import Image
from report_samples import LAYERNORM, SOFTMAX, make_bundle, make_results
from safetensors.numpy import save as save_tensors

from golden.accelerator import PRESETS
from golden.bundle import BundleError, read_bundle
from golden.tensorfile import read_json, read_tensors
from golden.vit import VitModel
from qvit_hw import calibrate, export, report
from qvit_hw import compile as compiler
from qvit_hw.bundle import load_bundle
from qvit_hw.compile import configuration
from qvit_hw.compiler.program import Program
from qvit_hw.costing import baseline, cache
from qvit_hw.costing.measuring import Row
from qvit_hw.errors import UserError
from qvit_hw.generate import build_unit
from qvit_hw.index import find_pages, render_index
from qvit_hw.models.checkpoints import read_checkpoint
from qvit_hw.models.images import open_picture
from qvit_hw.outputs import check_replaced
from qvit_hw.report_page.results import load_results
from qvit_hw.report_page.runs import load_run
from qvit_hw.rtl_folder import load_rtl

SCRATCH = Path(tempfile.gettempdir()) / "qvit-fuzz"
CANARY = "executed"
PATIENCE = 20.0
"""Seconds of work that no small file may cost."""


class Bait:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


# -------------------------------------------------------------------------------- what may not happen


class Watch:
    """Hears, through the interpreter's audit events, of what a reader must not do."""

    FORBIDDEN = (
        *("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn"),
        *("subprocess.Popen", "socket."),
    )
    WRITES = (
        *("os.mkdir", "os.rename", "os.remove", "os.rmdir"),
        *("os.symlink", "os.link", "os.chmod", "os.truncate"),
    )
    current: ClassVar[Watch | None] = None
    installed: ClassVar[bool] = False

    def __init__(self, folder: Path) -> None:
        self.folder, self.heard = str(folder.resolve()), list[str]()

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(self.FORBIDDEN):
            self.heard.append(f"{event} {args!r}")
        elif event == "open" and isinstance(args[0], str) and isinstance(args[1], str):
            if set(args[1]) & set("wax+"):
                self._written(event, args[0])
        elif event in self.WRITES and str(args[0]).startswith("/"):  # others are within a folder held open
            self._written(event, str(args[0]))

    def _written(self, event: str, path: str) -> None:
        if not path.startswith((self.folder, "/dev/null")):
            self.heard.append(f"{event} {path!r}")

    @contextmanager
    def watching(self) -> Iterator[None]:
        if not Watch.installed:
            sys.addaudithook(_heard)
            Watch.installed = True
        Watch.current = self
        try:
            yield
        finally:
            Watch.current = None


def _heard(event: str, args: tuple[Any, ...]) -> None:
    if Watch.current is not None:
        Watch.current.hear(event, args)


# ------------------------------------------------------------------------------------------- readers

Files = dict[str, bytes]


@dataclass(frozen=True)
class Reader:
    """A reader, with the errors that it may answer with.

    files: a valid input; those matching ``edits`` are edited.  share: of all inputs, in thousandths.  heal:
    puts hashes right after an edit.  whole: no file or folder may be left beside the input's own.
    """

    name: str
    share: int
    make: Callable[[Path], None]
    read: Callable[[Path], object]
    errors: tuple[type[Exception], ...] = (UserError,)
    edits: tuple[str, ...] = ("*",)
    heal: Callable[[Files], None] | None = None
    statuses: tuple[int, ...] = ()


def from_file(name: str, read: Callable[[bytes], object]) -> Callable[[Path], object]:
    """A reader of bytes as one of a folder."""
    return lambda folder: read((folder / name).read_bytes())


def _json_sample(folder: Path) -> None:
    value = {"a": [1, -2.5, None, True], "b": {"c": "d", "e": {"f": [[], {}]}}, "name": "x"}
    (folder / "sample.json").write_text(json.dumps(value))


def _arrays() -> dict[str, np.ndarray]:
    return {
        "blocks.0/weight": np.arange(12, dtype=np.int8).reshape(3, 4),
        "scale": np.linspace(0, 1, 3),
        "mask": np.array([[True, False]]),
        "none": np.zeros((0, 5), np.int32),
    }


def _tensor_sample(folder: Path) -> None:
    (folder / "sample.safetensors").write_bytes(save_tensors(_arrays()))


def heal_bundle(files: Files, folder: str = "") -> None:
    """Put the hashes of a bundle right, and what its manifest says of tensors that can be read."""
    try:
        manifest = json.loads(files[f"{folder}manifest.json"])
        told, tensors = manifest["files"], manifest["tensors"]
        for name in told:
            content = files.get(folder + name)
            if content is None:
                continue
            told[name] = hashlib.sha256(content).hexdigest()
            for tensor, array in read_tensors(content).items():
                entry = tensors.get(tensor)
                if isinstance(entry, dict) and "dtype" in entry:
                    entry |= {
                        "dtype": str(array.dtype),
                        "shape": list(array.shape),
                        "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
                    }
        files[f"{folder}manifest.json"] = json.dumps(manifest).encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # the edit took away what there is to heal


def heal_program(files: Files) -> None:
    """Put the hashes of a program's files right."""
    try:
        index = json.loads(files["program.json"])
        for name in index["files"]:
            if name in files:
                index["files"][name] = hashlib.sha256(files[name]).hexdigest()
        files["program.json"] = json.dumps(index).encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass


def heal_run(files: Files) -> None:
    """Let a run be of the program, whatever was edited."""
    try:
        run = json.loads(files["run.json"])
        ours = Program.load(SCRATCH_PROGRAM / "program")
        run["program"] = hashlib.sha256(ours.words.tobytes()).hexdigest()
        run["fingerprint"] = f"{ours.spec.fingerprint:016x}"
        files["run.json"] = json.dumps(run).encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass


def heal_units(files: Files) -> None:
    """Put the hash of an edited Verilog file right."""
    try:
        manifest = json.loads(files["manifest.json"])
        for entry in manifest["units"]:
            if entry["file"] in files:
                entry["sha256"] = hashlib.sha256(files[entry["file"]]).hexdigest()
        files["manifest.json"] = json.dumps(manifest).encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass


SCRATCH_PROGRAM = SCRATCH / "shared"
"""A bundle and its program, made once: runs are read against it."""


def shared() -> Path:
    """The folder with a valid bundle and program."""
    if not (SCRATCH_PROGRAM / "program" / "program.json").is_file():
        shutil.rmtree(SCRATCH_PROGRAM, ignore_errors=True)
        SCRATCH_PROGRAM.mkdir(parents=True)
        make_program(SCRATCH_PROGRAM / "program", make_bundle(SCRATCH_PROGRAM / "bundle"))
    return SCRATCH_PROGRAM


def _bundle(folder: Path) -> None:
    shutil.copytree(shared() / "bundle", folder, dirs_exist_ok=True)


def _program(folder: Path) -> None:
    shutil.copytree(shared() / "program", folder, dirs_exist_ok=True)


def _used_program(folder: Path) -> None:
    """Load a program, and ask of it what a run asks before anything is simulated."""
    program = Program.load(folder)
    image = program.image
    if image.height * image.width < 1 << 16:
        program.image_words(np.zeros((image.channels, image.height, image.width), np.uint8))
    assert program.steps[0].instruction["image_words"] >= 0
    json.dumps(program.to_json(), allow_nan=False)


def _used_golden(folder: Path) -> None:
    """Read a network with golden alone and run it."""
    model = VitModel.from_bundle(folder, read_bundle(folder))
    model(np.zeros((1, *model.input_size), np.uint8))


def _results(folder: Path, flip: str | None = None) -> None:
    make_results(folder / "results", shared() / "bundle", flip=flip)


def _run(folder: Path) -> None:
    make_run(folder / "made", shared() / "program")
    for path in (folder / "made").iterdir():
        path.rename(folder / path.name)
    (folder / "made").rmdir()


def _units(folder: Path) -> None:
    built = build_unit("layernorm", LAYERNORM, 1), build_unit("softmax", SOFTMAX, 1)
    for unit in built:
        (folder / unit.entry["file"]).write_text(unit.verilog)
    manifest = {"schema": "qvit-hw/rtl", "version": 1, "units": [unit.entry for unit in built]}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {f"module.{name}": torch.randn(3, 4, generator=generator) for name in ("a.weight", "b.bias")}


def _zipped(folder: Path) -> None:
    torch.save({"model": _state(), "epoch": 3}, folder / "weights.pt")


def _legacy(folder: Path) -> None:
    torch.save(_state(), folder / "weights.pth", _use_new_zipfile_serialization=False)


def _pickled(folder: Path) -> None:
    """A bait: the file itself would run code, and so would what edits leave of it."""
    (folder / "weights.pth").write_bytes(pickle.dumps({"model": Bait(SCRATCH / CANARY)}))


def _baited(folder: Path) -> None:
    torch.save({"model": Bait(SCRATCH / CANARY), **_state()}, folder / "weights.pt")


def _float_tensors(folder: Path) -> None:
    arrays = {name: value.numpy() for name, value in _state().items()}
    (folder / "weights.safetensors").write_bytes(save_tensors(arrays))


def _checkpoint(folder: Path) -> None:
    for path in folder.iterdir():
        state = read_checkpoint(path)
        assert all(bool(value.isfinite().all()) for value in state.values())


def _pictures(folder: Path) -> None:
    rng = np.random.default_rng(3)
    colours = rng.integers(0, 256, (9, 11, 3), np.uint8)
    for suffix, mode in (("png", "RGB"), ("jpg", "RGB"), ("bmp", "P"), ("tif", "RGB"), ("webp", "RGB")):
        Image.fromarray(colours).convert(mode).save(folder / f"a.{suffix}")
    Image.fromarray(colours).convert("LA").save(folder / "b.png", optimize=True)
    Image.fromarray(colours[..., 0].astype(np.uint16)).save(folder / "c.png")


def _opened(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        picture = open_picture(path, 3)
        assert picture.mode == "RGB"


def _config(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(PRESETS["16x16"].to_json()))


def _baseline(folder: Path) -> None:
    figures = {"LUT": 1000, "FF": 500, "DSP": 0, "BRAM": 2.5}
    rows = [Row(unit, 2, "xcup", "default", figures) for unit in ("softmax", "layernorm")]
    (folder / "baseline.json").write_text(baseline.text(rows, {"pyosys": "0.60"}))


def _compared(folder: Path) -> object:
    rows = baseline.read(folder / "baseline.json")
    return baseline.changes(rows, rows), baseline.text(rows, {})


def _cached(folder: Path) -> None:
    with redirected(folder):
        cache.store("0" * 64, {"LUT": 5, "parts": {"array": {"LUT": 3}}})


def _from_cache(folder: Path) -> object:
    with redirected(folder):
        return cache.load("0" * 64)


@contextmanager
def redirected(folder: Path) -> Iterator[None]:
    """The cache is in this folder."""
    before = os.environ.get("QVIT_CACHE")
    os.environ["QVIT_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("QVIT_CACHE")
        if before is not None:
            os.environ["QVIT_CACHE"] = before


def _indexed(folder: Path) -> None:
    (folder / "demo").mkdir()
    page = "<title>9 · qvit-hw</title><h1>9 <small>mutants</small></h1>"
    (folder / "demo" / "mutation.html").write_text(page)
    (folder / "demo" / "mutation.json").write_text(json.dumps({"passed": True, "units": [1, 2]}))


def _index(folder: Path) -> object:
    return render_index(find_pages(folder))


def _page(folder: Path) -> int:
    """The report of results that were edited; a page that is refused leaves nothing."""
    out = folder / "page"
    try:
        status = report.run(results=folder / "results", bundle=shared() / "bundle", out=out / "report.html")
    except UserError:
        assert not out.exists(), "a page that was refused left a folder"
        raise
    return status


def _compiled(folder: Path) -> int:
    """Compile a bundle that was edited; a program that is refused leaves nothing."""
    out = folder / "out"
    try:
        status = compiler.run(bundle=folder / "bundle", out=out, fit=True)
    except UserError:
        assert not out.exists(), "a program that was refused left a folder"
        raise
    return status


def _exported(folder: Path) -> int:
    """Write a graph of a bundle that was edited, plan and all."""
    out = folder / "out"
    try:
        status = export.run(bundle=folder / "bundle", out=out / "model.onnx", format="onnx")
    except UserError:
        assert not out.exists(), "a graph that was refused left a folder"
        raise
    return status


def _compilable(folder: Path) -> None:
    (folder / "bundle").mkdir()
    _bundle(folder / "bundle")


def _calibrated(folder: Path) -> None:
    if not (SCRATCH_PROGRAM / "calibrated" / "manifest.json").is_file():
        calibrate.run(model="digits", out=shared() / "calibrated", calibration=2, vector_images=1)
    shutil.copytree(shared() / "calibrated", folder / "bundle")


def _loaded_units(folder: Path) -> object:
    return load_rtl(folder, {"softmax": SOFTMAX})


def _healed(files: Files) -> None:
    heal_bundle(files, "bundle/")


def _loaded_run(folder: Path) -> object:
    return load_run(folder, Program.load(shared() / "program"))


_replaced = partial(check_replaced, index="program.json", schema="qvit-hw/program")
_scales = ("bundle/manifest.json", "bundle/scales.safetensors")
_flipped = partial(_results, flip="blocks.0.norm2")

READERS: tuple[Reader, ...] = (
    Reader("json", 60, _json_sample, from_file("sample.json", read_json), (ValueError,)),
    Reader("safetensors", 160, _tensor_sample, from_file("sample.safetensors", read_tensors), (ValueError,)),
    Reader("bundle", 70, _bundle, load_bundle, heal=heal_bundle),
    Reader("golden bundle", 60, _bundle, _used_golden, (BundleError,), heal=heal_bundle),
    Reader("bundle manifest", 40, _bundle, load_bundle, edits=("manifest.json",)),
    Reader("checkpoint zip", 100, _zipped, _checkpoint),
    Reader("checkpoint legacy", 60, _legacy, _checkpoint),
    Reader("checkpoint safetensors", 50, _float_tensors, _checkpoint),
    Reader("checkpoint bait", 30, _pickled, _checkpoint),
    Reader("checkpoint zip bait", 30, _baited, _checkpoint),
    Reader("images", 100, _pictures, _opened),
    Reader("program", 70, _program, _used_program, edits=("program.*",), heal=heal_program),
    Reader("run", 40, _run, _loaded_run, heal=heal_run),
    Reader("configuration", 60, _config, lambda folder: configuration(str(folder / "config.json"))),
    Reader("results", 40, _results, lambda folder: load_results(folder / "results").outputs()),
    Reader("verilog folder", 20, _units, _loaded_units, edits=("manifest.json",), heal=heal_units),
    Reader("cost baseline", 10, _baseline, _compared),
    Reader("cost cache", 10, _cached, _from_cache, ()),
    Reader("index of pages", 10, _indexed, _index, ()),
    Reader("folder to replace", 4, _program, _replaced, edits=("program.json",)),
    Reader("report", 3, _flipped, _page, statuses=(0, 1)),
    Reader("export", 3, _calibrated, _exported, heal=_healed, statuses=(0,), edits=_scales),
    Reader("compile", 3, _compilable, _compiled, heal=_healed, statuses=(0,)),
)


# ---------------------------------------------------------------------------------------------- trying


@dataclass
class Tally:
    """What became of a reader's inputs."""

    reader: Reader
    tried: int = 0
    taken: int = 0
    same: int = 0
    seconds: float = 0.0
    fault: str | None = None
    messages: set[str] = field(default_factory=set)


class Broken(Exception):
    """A rule that an input broke."""


class Trial:
    """A valid input in a folder of its own, edited in place and restored."""

    def __init__(self, reader: Reader, scratch: Path) -> None:
        self.reader, self.folder = reader, scratch / "input"
        self.watch = Watch(scratch)
        self.folder.mkdir(parents=True)
        reader.make(self.folder)
        self.valid: Files = {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }
        self.names = sorted(
            name for name in self.valid if any(Path(name).match(glob) for glob in reader.edits)
        )
        if not reader.name.endswith("bait"):
            self.outcome(self.valid)  # the input is valid before it is edited

    def edited(self, choose: Choices) -> Files:
        """All files of the input after an edit."""
        files = dict(self.valid)
        name = choose.of(self.names)
        files[name] = edited(name, files[name], choose)
        if self.reader.heal is not None and choose.below(8):
            self.reader.heal(files)
        return files

    def outcome(self, files: Files) -> str | None:
        """Read these files: None if they are taken, else the error's message; Broken for anything else."""
        before = {name for name in files if files[name] != self.valid[name]}
        for name in before:
            (self.folder / name).write_bytes(files[name])
        try:
            return self._read()
        finally:
            for name in before:
                (self.folder / name).write_bytes(self.valid[name])
            for folder in ("page", "out"):
                shutil.rmtree(self.folder / folder, ignore_errors=True)
            left = {
                path.relative_to(self.folder).as_posix()
                for path in self.folder.rglob("*")
                if path.is_file()
            } - set(self.valid)
            if left:
                raise Broken(f"left {sorted(left)}")

    def _read(self) -> str | None:
        message, begun = None, time.process_time()
        self.watch.heard.clear()
        quiet = io.StringIO()
        with self.watch.watching(), redirect_stdout(quiet), redirect_stderr(quiet), warnings.catch_warnings():
            warnings.simplefilter("error")  # a warning on stderr would be noise of a user's own input
            try:
                status = self.reader.read(self.folder)
                if self.reader.statuses and status not in self.reader.statuses:
                    raise Broken(f"exit status {status}")
            except self.reader.errors as error:
                message = str(error)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                raise Broken(f"{type(error).__name__}: {error}"[:300]) from error
        if time.process_time() - begun > PATIENCE:
            raise Broken(f"took {time.process_time() - begun:.0f} s")
        if self.watch.heard:
            raise Broken(f"did {self.watch.heard[0]}")
        if (SCRATCH / CANARY).exists():
            raise Broken("executed what stands in the file")
        if message is not None and ("\n" in message or not message):
            raise Broken(f"message of several lines or none: {message!r}")
        return message


def fuzz(reader: Reader, inputs: int, seed: int, out: Path | None = None) -> Tally:
    """Try so many inputs; the tally's fault is the smallest input that broke a rule."""
    tally, begun = Tally(reader), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="qvit-fuzz-") as name:
        trial = Trial(reader, Path(name))

        @seeded(seed)
        @settings(
            max_examples=inputs,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(st.integers(0, (1 << 32) - 1), min_size=4, max_size=16))
        def attempt(numbers: Sequence[int]) -> None:
            files = trial.edited(Choices(numbers))
            tally.tried += 1
            tally.same += files == trial.valid
            try:
                message = trial.outcome(files)
            except Broken:
                if out is not None:
                    _keep(out / reader.name.replace(" ", "_"), files)
                raise
            tally.taken += message is None
            if message is not None and len(tally.messages) < 1000:
                tally.messages.add(message[:200])

        try:
            attempt()
        except Broken as broken:
            cause = broken.__cause__
            tally.fault = f"{broken}" + (f" ({cause!r})"[:200] if cause is not None else "")
    tally.seconds = time.monotonic() - begun
    return tally


def _keep(folder: Path, files: Files) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def main() -> int:
    """Fuzz all readers, print what became of it; return 1 if a rule was broken."""
    parser = argparse.ArgumentParser(description="Feeds every reader with files that nobody wrote.")
    parser.add_argument("--inputs", type=int, default=100_000, help="inputs in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", help="readers of this name alone")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="for inputs that break a rule")
    options = parser.parse_args()
    readers = [r for r in READERS if not options.only or r.name in options.only]
    whole = sum(reader.share for reader in readers)
    tallies = []
    print(f"{'reader':24} {'inputs':>8} {'taken':>8} {'refused':>8} {'seconds':>8}")
    for reader in readers:
        tally = fuzz(reader, -(-options.inputs * reader.share // whole), options.seed, options.out)
        tallies.append(tally)
        told = f"{tally.tried:8,} {tally.taken:8,} {tally.tried - tally.taken:8,} {tally.seconds:8.1f}"
        print(f"{reader.name:24} {told}  {tally.fault or ''}", flush=True)
    tried = sum(tally.tried for tally in tallies)
    broken = sum(tally.fault is not None for tally in tallies)
    print(f"{tried:,} inputs, {broken} of {len(readers)} readers broke a rule")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
