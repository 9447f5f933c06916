# SPDX-License-Identifier: Apache-2.0
"""The command compile: the folder that it writes, what it refuses, and a folder that was changed."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from accelerated import compiled, executed
from bundle_samples import digits
from bundles import described, written
from networks import images, tiny_swin

from golden.accelerator import PRESETS
from golden.accelerator_cycles import timeline
from golden.program import Instruction, Wait
from golden.vit import VitModel
from qvit_hw import cli
from qvit_hw.bundle import load_bundle
from qvit_hw.compile import configuration
from qvit_hw.compiler.listing import listing
from qvit_hw.compiler.program import Program
from qvit_hw.compiler.schedule import compile_network
from qvit_hw.compiler.tensors import differences, references, regrouped
from qvit_hw.errors import UserError
from qvit_hw.small_networks import tiny_network
from rtl.accelerator import Accelerator
from rtl.emit import emit


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return digits(tmp_path_factory.mktemp("digits") / "bundle")


def invoked(bundle, out, *more, config="16x16"):
    return cli.invoke(
        ["compile", "--bundle", str(bundle), "--config", config, "--out", str(out), *more]
    )


def test_the_folder_has_all_that_a_run_needs(bundle, tmp_path, capsys):
    out = tmp_path / "program"
    assert invoked(bundle, out, "--fit") == 0
    assert "for a 16 x 16 array" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == [
        *("bundle", "listing.txt", "program.bin", "program.json")
    ]
    program, model = Program.load(out), VitModel.from_bundle(out / "bundle")
    assert load_bundle(out / "bundle").sha256 == load_bundle(bundle).sha256
    image = images(model)[2]
    events, result = executed(program, image)
    assert np.array_equal(result, model(image[None])[0])
    assert differences(regrouped(program, events), references(program, model, image)) == []
    assert listing(program) == (out / "listing.txt").read_text()
    index = json.loads((out / "program.json").read_text())
    assert index["memory"]["stream"] == {"used": 68, "words": 4096}
    assert index["image"]["words"] == 16
    assert index["fingerprint"] == f"{program.spec.fingerprint:016x}"
    first = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert invoked(bundle, out, "--fit") == 0
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == first


def test_the_hardware_comes_with_it_if_it_is_asked_for(bundle, tmp_path):
    small = {"size": 4, "features": 2048}
    (tmp_path / "small.json").write_text(json.dumps(small))
    config, out = str(tmp_path / "small.json"), tmp_path / "program"
    assert invoked(bundle, out, "--fit", "--verilog", "--port-bits", "18", config=config) == 0
    verilog = (out / "qvit_accelerator.v").read_text()
    assert "\nmodule qvit_accelerator(" in verilog
    assert verilog == emit(Accelerator(Program.load(out).spec, port_bits=18), "qvit_accelerator")


def test_the_listing_has_a_line_for_every_instruction(tmp_path):
    program = compiled(tiny_network(wide=True), 4)
    lines = listing(program).splitlines()
    numbered = [line for line in lines if re.match(r" +\d+ ", line)]
    assert len(numbered) == len(program.steps)
    for number, (line, step) in enumerate(zip(numbered, program.steps, strict=True)):
        assert line.split()[:3] == [str(number), str(step.word), str(step.words)]
        assert step.note in line
        assert ("array" in line) == bool(step.instruction.wait & Wait.ARRAY)
    times = timeline([step.instruction for step in program.steps], program.spec, 6 * 12)
    assert any(line.endswith(f", {times.cycles} cycles") for line in lines)
    for span in times.spans[1:]:
        assert numbered[span.instruction].split()[3:5] == [
            str(span.begin),
            str(span.end - span.begin),
        ]


@pytest.fixture
def refused(capsys, tmp_path):
    """A function: compile must say this sentence and leave everything as it was."""

    def check(sentence, *arguments, **more):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert invoked(*arguments, **more) == cli.BAD_INPUT
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert re.fullmatch(f"error: {sentence}", last), last
        after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert after == before

    return check


def test_a_multiplier_port_that_no_target_has_is_refused(refused, bundle, tmp_path):
    sentence = "Multiplier port width must be 18 to 27, not 17\\."
    refused(sentence, bundle, tmp_path / "program", "--fit", "--verilog", "--port-bits", "17")


def test_bad_input_is_one_sentence(bundle, tmp_path, refused):
    out = tmp_path / "out"
    refused("Node 'blocks.0.norm1' cannot run .*its in_bits is 16, .*", bundle, out)
    refused(
        "Configuration must be 16x16, 32x32 or a file .*json, not '17'.", bundle, out, config="17"
    )
    file = tmp_path / "spec.json"
    refused(f"Configuration '{file}' cannot be read: .*", bundle, out, config=str(file))
    for text, reason in (
        ("{", ".*"),
        ("[]", ".*"),
        ('{"size": 5}', r"Size must be one of \(4, 8, 16, 32\), not 5."),
        ('{"siez": 4}', r"Fields of an accelerator must be its own, not \['siez'\]."),
        ('{"layernorm": {"lanes": 4}}', ".*"),
    ):
        file.write_text(text)
        refused(f"Configuration '{file}' is not sound: {reason}", bundle, out, config=str(file))
    refused("Bundle .* is not a bundle: .*", tmp_path, out)
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine").write_text("mine")
    refused("Output .* holds other files: it is left alone.", bundle, other, "--fit")
    swin = tmp_path / "swin"
    written(swin, *described(tiny_swin()))
    refused("Bundle .*", swin, out, "--fit")


def test_a_configuration_from_a_file(tmp_path):
    file, spec = tmp_path / "spec.json", replace(PRESETS["32x32"], stream_bits=8, keys=512)
    file.write_text(json.dumps(spec.to_json()))
    assert configuration(str(file)) == spec
    assert configuration("32x32") is PRESETS["32x32"]


def test_a_folder_that_was_changed_is_not_loaded(bundle, tmp_path):
    out = tmp_path / "program"
    assert invoked(bundle, out, "--fit") == 0
    kept = (out / "program.json").read_bytes()
    Program.load(out)

    def fails(reason):
        with pytest.raises(UserError, match=f"^Program '{out}' {reason}$"):
            Program.load(out)
        (out / "program.json").write_bytes(kept)

    def with_index(**more):
        (out / "program.json").write_text(json.dumps({**json.loads(kept), **more}))

    with_index(schema="other")
    fails("is not sound: schema must be 'qvit-hw/program', not 'other'.")
    with_index(version=2)
    fails("is not sound: version must be 1, not 2.")
    with_index(words=1)
    fails("is not sound: .*")
    with_index(steps=None, instructions=None)
    fails("is not sound: .*")
    (out / "program.json").write_text("{}")
    fails("is not sound: program.json lacks 'schema'.")
    with (out / "program.bin").open("r+b") as file:
        file.write(b"\xff")
    fails("is not sound: program.bin must be the file that was written, not another.")
    (out / "program.bin").unlink()
    fails("cannot be read: program.bin: No such file or directory.")


def test_images_of_another_kind():
    image = compiled(tiny_network(heads=()), 4).image
    with pytest.raises(ValueError, match=r"^Image must be \(3, 8, 12\), not shape \(3, 8, 8\)$"):
        image.words(np.zeros((3, 8, 8), np.uint8), 4)
    with pytest.raises(TypeError, match=r"^Images must be an array of uint8 pixels, not int64$"):
        image.words(np.zeros((3, 8, 12), np.int64), 4)


def test_an_instruction_of_a_loaded_program_is_the_one_that_was_written(bundle, tmp_path):
    out = tmp_path / "program"
    assert invoked(bundle, out, "--fit", config="32x32") == 0
    loaded = Program.load(out)
    made = compile_network(VitModel.from_bundle(bundle), loaded.spec, loaded.notes)
    assert np.array_equal(loaded.words, made.words)
    assert [step.instruction.to_bytes() for step in loaded.steps] == [
        step.instruction.to_bytes() for step in made.steps
    ]
    assert [step.parts for step in loaded.steps] == [step.parts for step in made.steps]
    assert all(isinstance(step.instruction, Instruction) for step in loaded.steps)
