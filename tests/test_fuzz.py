# SPDX-License-Identifier: Apache-2.0
"""Readers and files that nobody wrote: some thousand inputs, and the bombs that no chance would make.

``python tests/fuzz_readers.py`` tries a hundred thousand.
"""

import io
import pickle
import re
import resource
import zipfile
import zlib

import fuzz_inputs
import fuzz_readers
import fuzz_trial
import numpy as np
import pytest
import torch
from fuzz_edits import Choices, chunks, edit_json, edited, png
from PIL import Image

from golden.tensorfile import read_json
from qvit_hw.errors import UserError
from qvit_hw.models.checkpoints import read_checkpoint
from qvit_hw.models.images import open_picture

SHORT = 3000
"""Inputs of all readers together; those that are slow to begin are left to ``make verify``."""
LONG = ("export",)
TOLERANT = ("cost cache", "index of pages")
"""Readers for which a broken file is one that is not there."""


@pytest.mark.parametrize(
    "reader", [r for r in fuzz_readers.READERS if r.name not in LONG], ids=lambda reader: reader.name
)
def test_readers_refuse_or_understand(reader, tmp_path, monkeypatch):
    use(tmp_path, monkeypatch)
    tally = fuzz_trial.fuzz(reader, max(12, SHORT * reader.share // 1000), 7)
    assert tally.fault is None
    assert tally.tried >= 10
    refused = tally.tried - tally.taken
    assert refused or reader.name in TOLERANT, "edits that all are taken try nothing"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--inputs", "0"], "Inputs must be at least 1, not 0."),
        (["--inputs", "-5"], "Inputs must be at least 1, not -5."),
        (["--only", "json", "--only", "nosuch"], "Reader must be one of json, .*, compile, not 'nosuch'."),
        (["--out", "file"], "Output 'file' must be a folder, not a file."),
    ],
)
def test_options_that_will_not_do_are_refused(arguments, sentence, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert fuzz_readers.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(f"error: {sentence}\n", err)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_command_feeds_the_readers_asked_for(tmp_path, monkeypatch, capsys):
    use(tmp_path, monkeypatch)
    asked = ["--inputs", "20", "--only", "json", "--only", "index of pages", "--out", str(tmp_path / "out")]
    assert fuzz_readers.main(asked) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(" inputs, 0 of 2 readers broke a rule")


def use(folder, monkeypatch):
    """Let the valid inputs be made in a folder of the test (each process makes its own)."""
    base = folder.parent.parent / f"fuzz-{folder.parent.name}"
    base.mkdir(exist_ok=True)
    monkeypatch.setattr(fuzz_trial, "SCRATCH", base)


class Rule:
    """A reader of one file that does as it is told."""

    def __init__(self, read):
        self.reader = fuzz_trial.Reader(
            "told", 1, lambda folder: (folder / "a.json").write_text('{"a": 1}') and None, read
        )


def tried(read):
    return fuzz_trial.fuzz(Rule(read).reader, 40, 1).fault


def test_a_reader_that_breaks_a_rule_is_found(tmp_path):
    """Each rule: another error, several lines, a file elsewhere, a process, something left behind."""
    begin = b'{"a": 1}'

    def unless_valid(action):
        def read(folder):
            if (folder / "a.json").read_bytes() != begin:
                action(folder)

        return read

    def several(_):
        raise UserError("one\ntwo")

    def process(_):
        import subprocess

        subprocess.run(["true"], check=True)

    def execute(folder):
        pickle.loads(pickle.dumps(fuzz_inputs.Bait(tmp_path / "made")))
        (tmp_path / "made").rmdir()

    assert tried(lambda folder: None) is None
    assert "KeyError" in tried(unless_valid(lambda _: {}["x"]))
    assert "RecursionError" in tried(unless_valid(lambda folder: deep(folder)))
    assert "several lines" in tried(unless_valid(several))
    assert "subprocess.Popen" in tried(unless_valid(process))
    assert "did open" in tried(unless_valid(lambda _: (tmp_path / "elsewhere").write_text("x")))
    assert "did os.mkdir" in tried(unless_valid(execute))
    assert "left" in tried(unless_valid(lambda folder: (folder / "part").write_text("x")))


def deep(folder):
    import json

    json.loads("[" * 200_000)


def test_edits_reach_every_kind():
    """Of a thousand edits of a JSON some are refused as such, some are not; and each comes back."""
    text = b'{"a": [1, 2, {"b": "c"}], "d": {"e": null}}'
    results, sound = set(), 0
    for number in range(1000):
        choices = [number * 7919 + 13 * step for step in range(8)]
        found = edited("x.json", text, Choices(choices))
        assert found == edited("x.json", text, Choices(choices))
        results.add(found)
        try:
            read_json(found)
            sound += 1
        except ValueError:
            pass
    assert len(results) > 300
    assert 200 < sound < 950
    assert any(len(found) > 100_000 for found in results)
    assert edit_json(b"no json", Choices([1])) != b""


# ---------------------------------------------------------------------------------------------- bombs


def refused(path, words):
    """read_checkpoint refuses the file in a sentence with these words, and without the memory it asks for."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=words):
        read_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_an_archive_that_unpacks_to_very_much_is_refused(tmp_path):
    torch.save({"a": torch.zeros(4)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        parts = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts:
            with archive.open(name, "w") as file:
                for _ in range(400 if name.endswith("data.pkl") else 1):
                    file.write(bytes(1 << 20) if name.endswith("data.pkl") else part)
    assert (tmp_path / "bomb.pt").stat().st_size < 1 << 20
    refused(tmp_path / "bomb.pt", "is damaged or of another format")


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(1).expand(1 << 28),
        lambda: torch.ones(1).expand(1 << 42),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.eye(3, device="meta"),
    ],
    ids=["view of 1 GB", "view of 16 TB", "sparse", "meta"],
)
def test_tensors_that_are_more_than_the_file_are_refused(make, tmp_path):
    torch.save({"a": make()}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", r"^Tensor 'a' of the checkpoint must be stored element by element\.$")


def test_small_floats_are_read(tmp_path):
    values = torch.eye(3).to(torch.float8_e4m3fn)
    torch.save({"a": values, "b": values[1:]}, tmp_path / "a.pt")
    assert torch.equal(read_checkpoint(tmp_path / "a.pt")["a"], torch.eye(3))


def test_pictures_of_very_many_pixels_are_refused(tmp_path):
    header = dict(chunks(picture((8, 8))))[b"IHDR"]
    wide = (30_000).to_bytes(4, "big") * 2 + header[8:]
    parts = [(b"IHDR", wide), (b"IDAT", zlib.compress(bytes(1 << 20))), (b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(png(parts))
    text = (b"zTXt", b"x\0\0" + zlib.compress(bytes(1 << 28)))
    (tmp_path / "b.png").write_bytes(png([chunks(picture((8, 8)))[0], text, *chunks(picture((8, 8)))[1:]]))
    for name in ("a.png", "b.png"):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(UserError, match=rf"/{name}' cannot be read: it is damaged or no image\.$"):
            open_picture(tmp_path / name, 3)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def picture(size):
    made = io.BytesIO()
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(made, "png")
    return made.getvalue()
