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
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import fuzz_inputs as valid
import numpy as np
from fuzz_trial import Reader, fuzz
from report_samples import SOFTMAX

from golden.bundle import BundleError, read_bundle
from golden.tensorfile import read_json, read_tensors
from golden.vit import VitModel
from qvit_hw import compile as compiler
from qvit_hw import export, report
from qvit_hw.bundle import load_bundle
from qvit_hw.compile import configuration
from qvit_hw.compiler.program import Program
from qvit_hw.costing import baseline, cache
from qvit_hw.errors import UserError
from qvit_hw.index import find_pages, render_index
from qvit_hw.models.checkpoints import read_checkpoint
from qvit_hw.models.images import open_picture
from qvit_hw.outputs import check_folder, check_replaced
from qvit_hw.report_page.results import load_results
from qvit_hw.report_page.runs import load_run
from qvit_hw.rtl_folder import load_rtl


def from_file(name: str, read: Callable[[bytes], object]) -> Callable[[Path], object]:
    """A reader of bytes as one of a folder."""
    return lambda folder: read((folder / name).read_bytes())


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


def _loaded_units(folder: Path) -> object:
    return load_rtl(folder, {"softmax": SOFTMAX})


def _loaded_run(folder: Path) -> object:
    return load_run(folder, Program.load(valid.shared() / "program"))


def _checkpoint(folder: Path) -> None:
    for path in folder.iterdir():
        state = read_checkpoint(path)
        assert all(bool(value.isfinite().all()) for value in state.values())


def _opened(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        picture = open_picture(path, 3)
        assert picture.mode == "RGB"


def _compared(folder: Path) -> object:
    rows = baseline.read(folder / "baseline.json")
    return baseline.changes(rows, rows), baseline.text(rows, {})


def _from_cache(folder: Path) -> object:
    with valid.redirected(folder):
        return cache.load("0" * 64)


def _index(folder: Path) -> object:
    return render_index(find_pages(folder))


@contextmanager
def _refused_without_trace(out: Path) -> Iterator[Path]:
    """A command that refuses its input leaves no folder ``out``."""
    try:
        yield out
    except UserError:
        assert not out.exists(), "what was refused left a folder"
        raise


def _page(folder: Path) -> int:
    """The report of results that were edited."""
    with _refused_without_trace(folder / "page") as out:
        bundle = valid.shared() / "bundle"
        return report.run(results=folder / "results", bundle=bundle, out=out / "report.html")


def _compiled(folder: Path) -> int:
    """Compile a bundle that was edited."""
    with _refused_without_trace(folder / "out") as out:
        return compiler.run(bundle=folder / "bundle", out=out, fit=True)


def _exported(folder: Path) -> int:
    """Write a graph of a bundle that was edited, plan and all."""
    with _refused_without_trace(folder / "out") as out:
        return export.run(bundle=folder / "bundle", out=out / "model.onnx", format="onnx")


_replaced = partial(check_replaced, index="program.json", schema="qvit-hw/program")
_scales = ("bundle/manifest.json", "bundle/scales.safetensors")
_flipped = partial(valid.results, flip="blocks.0.norm2")

READERS: tuple[Reader, ...] = (
    Reader("json", 60, valid.values, from_file("sample.json", read_json), (ValueError,)),
    Reader("safetensors", 160, valid.tensors, from_file("sample.safetensors", read_tensors), (ValueError,)),
    Reader("bundle", 70, valid.bundle, load_bundle, heal=valid.heal_bundle),
    Reader("golden bundle", 60, valid.bundle, _used_golden, (BundleError,), heal=valid.heal_bundle),
    Reader("bundle manifest", 40, valid.bundle, load_bundle, edits=("manifest.json",)),
    Reader("checkpoint zip", 100, valid.zipped, _checkpoint),
    Reader("checkpoint legacy", 60, valid.legacy, _checkpoint),
    Reader("checkpoint safetensors", 50, valid.float_tensors, _checkpoint),
    Reader("checkpoint bait", 30, valid.pickled, _checkpoint),
    Reader("checkpoint zip bait", 30, valid.baited, _checkpoint),
    Reader("images", 100, valid.pictures, _opened),
    Reader("program", 70, valid.program, _used_program, edits=("program.*",), heal=valid.heal_program),
    Reader("run", 40, valid.run, _loaded_run, heal=valid.heal_run),
    Reader("configuration", 60, valid.config, lambda folder: configuration(str(folder / "config.json"))),
    Reader("results", 40, valid.results, lambda folder: load_results(folder / "results").outputs()),
    Reader("verilog folder", 20, valid.units, _loaded_units, edits=("manifest.json",), heal=valid.heal_units),
    Reader("cost baseline", 10, valid.recorded, _compared),
    Reader("cost cache", 10, valid.cached, _from_cache, ()),
    Reader("index of pages", 10, valid.pages, _index, ()),
    Reader("folder to replace", 4, valid.program, _replaced, edits=("program.json",)),
    Reader("report", 3, _flipped, _page, statuses=(0, 1)),
    Reader("export", 3, valid.calibrated, _exported, heal=valid.heal_within, statuses=(0,), edits=_scales),
    Reader("compile", 3, valid.bundle_within, _compiled, heal=valid.heal_within, statuses=(0,)),
)


def _chosen(options: argparse.Namespace) -> list[Reader]:
    """The readers to feed; UserError for options that will not do."""
    if options.inputs < 1:
        raise UserError(f"Inputs must be at least 1, not {options.inputs}.")
    names = [reader.name for reader in READERS]
    for name in options.only or ():
        if name not in names:
            raise UserError(f"Reader must be one of {', '.join(names)}, not {name!r}.")
    check_folder(options.out)
    return [reader for reader in READERS if not options.only or reader.name in options.only]


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz all readers, print what became of it; return 1 if a rule was broken, 2 for bad options."""
    parser = argparse.ArgumentParser(description="Feeds every reader with files that nobody wrote.")
    parser.add_argument("--inputs", type=int, default=100_000, help="inputs in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", help="readers of this name alone")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="for inputs that break a rule")
    options = parser.parse_args(arguments)
    try:
        readers = _chosen(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
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
