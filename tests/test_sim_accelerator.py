# SPDX-License-Identifier: Apache-2.0
"""Whole networks on the emitted Verilog: every word of every unit, whatever the memory and the host do."""

import re
from dataclasses import replace

import numpy as np
import pytest

from golden.program import INSTRUCTION_BYTES, PARAMETER_WORDS, Error
from qvit_hw.accelerator import Accelerator, emitted, registers
from qvit_hw.compiler.tensors import SUMS
from qvit_hw.divergence import check_words
from qvit_hw.trial import Desk, compiled, pictures, refused, trial, two_networks
from sim.accelerator import OUTSIDE, build_bench
from sim.bench import JOB_VARIABLE
from sim.runner import RunFailed, run_tests
from sim.session import BASE, Bus, Outcome, Session
from sim.tools import find, have_icarus
from sim.words import dumped

STALLS = [Bus(latency=1), Bus(latency=200), Bus(200, 128, 1), Bus(50, 250, 2), Bus(7, 30, 3)]
SIMULATORS = ["verilator"]
if have_icarus():
    SIMULATORS.append(pytest.param("icarus", marks=pytest.mark.icarus))


@pytest.fixture(scope="module")
def networks():
    """Two networks of different shape, and an accelerator that takes both."""
    models = two_networks()
    return models, compiled(models)


@pytest.fixture(scope="module")
def hardware(networks):
    return emitted(networks[1][0].spec)


def with_a_wrong_weight(program):
    """The program's words; the first weight of a layer in the second block has a wrong bit."""
    at = next(step for step in program.steps if step.note.startswith("blocks.1.mlp.fc1"))
    broken, size = program.words.copy(), program.spec.size
    broken[at.word + INSTRUCTION_BYTES // size + PARAMETER_WORDS, 0] ^= 0x40
    return broken


def faults(results):
    return [fault for _, fault in results]


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_every_word_of_two_networks_one_after_the_other(networks, hardware, tmp_path, simulator):
    desk, ran = Desk(networks[1][0].spec), []
    for seed in range(2):
        for model, program in zip(*networks, strict=True):
            for image in pictures(program, 2, seed):
                desk.run(program, image, model(image[None])[0].reshape(-1))
                ran.append((program, model, image))
    results = desk.simulate(hardware, tmp_path, simulator, dump=True)
    assert faults(results) == [None] * 8
    for index, (program, model, image) in enumerate(ran):
        words = dumped(tmp_path / "run", index, desk.spec)
        count, wrong, divergence = check_words(program, model, image, words)
        assert (wrong, divergence) == ((), None)
        assert count == len({p.tensor for step in program.steps for p in step.parts})


@pytest.mark.parametrize("bus", STALLS, ids=str)
def test_stalls_of_the_memory_change_cycles_and_nothing_else(networks, hardware, tmp_path, bus):
    (model, *_), (program, *_) = networks
    image = pictures(program, 1)[0]
    cycles = []
    for number, each in enumerate((Bus(), bus)):
        desk = Desk(program.spec)
        for _ in range(2):
            desk.run(program, image, model(image[None])[0].reshape(-1))
        results = desk.simulate(hardware, tmp_path / str(number), bus=each, dump=True)
        assert faults(results) == [None, None]
        for index in range(2):
            words = dumped(tmp_path / str(number) / "run", index, program.spec)
            assert check_words(program, model, image, words)[1:] == ((), None)
        cycles.append([outcome.counters["cycles"] for outcome, _ in results])
    assert cycles[0] != cycles[1]


def test_a_reset_in_the_middle_and_every_error_leave_nothing_behind(networks, hardware, tmp_path):
    (model, *_), (program, *_) = networks
    image = pictures(program, 1)[0]
    desk, wanted = Desk(program.spec, Bus(40, 60, 5)), model(image[None])[0].reshape(-1)
    refused(desk, model, program, image)
    for cycles in (1, 30, 300, 1000, 2000):
        desk.run(program, image, abandon=cycles)
        desk.run(program, image, wanted)
    results = desk.simulate(hardware, tmp_path)
    assert faults(results) == [None] * len(desk.runs)
    assert [outcome is None for outcome, _ in results] == [run.abandon > 0 for run in desk.runs]


def test_a_second_axi_implementation_agrees(networks, hardware, tmp_path):
    """cocotbext-axi is memory and host; a wrong weight and a burst across 4 KiB show that it looks."""
    (model, *_), (program, *_) = networks
    image, limit = pictures(program, 1)[0], 40_000
    wanted, broken = model(image[None])[0].reshape(-1), with_a_wrong_weight(program)
    desk = Desk(program.spec)
    for _ in range(4):
        desk.run(program, image, wanted, limit=limit)
    desk.run(program, image, wanted, words=broken, limit=limit)
    desk.run(program, image, error=Error.BUS, program_address=BASE - 4096, limit=limit)
    Session(*registers(desk.spec), desk.runs).write(tmp_path)
    desk.memory.write(tmp_path / "memory.bin")
    simulation = build_bench(find("verilator"), hardware, desk.spec, tmp_path, OUTSIDE)
    runs = enumerate(("none", "memory", "host", "both", "none", "memory"))
    names = [f"outside/index={index}/pauses={pauses}" for index, pauses in runs]
    module = "sim.tb_accelerator_outside"
    names = [f"{module}.{name}" for name in (*names, "refused", "breached")]
    found = run_tests(simulation, module, names, tmp_path, env={JOB_VARIABLE: str(tmp_path)})
    *right, flipped, refused_address, refused, breached = (found[name] for name in names)
    assert (right, refused_address, refused) == ([None] * 4, None, None)
    assert flipped.startswith(f"output 0 must be {wanted[0]}, not ")
    cycles = [Outcome.read(tmp_path, index).counters["cycles"] for index in range(4)]
    assert cycles[0] == cycles[2] < min(cycles[1], cycles[3])  # pauses of the memory are felt
    assert re.match(r"assert \(4096 - \(\d+ & 4095\)\) >= \d+", breached)


def test_predict_is_a_function_of_images(networks):
    (model, *_), (program, *_) = networks
    images = pictures(program, 3)
    found = Accelerator(program).predict(images)
    assert found.dtype == np.int64
    assert np.array_equal(found, model(images))


def test_a_trial_knows_all_there_is_to_know(hardware, tmp_path):
    desk = trial()
    results = desk.simulate(hardware, tmp_path, registers=True)
    assert faults(results) == [None] * len(desk.runs)
    assert {run.error for run in desk.runs} == set(Error) | {0}


# --------------------------------------------------------------- what the bench and the checks find


def test_a_trial_finds_a_wrong_word_and_a_wrong_count(hardware, tmp_path, networks):
    (model, *_), (program, *_) = networks
    image = pictures(program, 1)[0]
    for unit in ("sums", "words", "layernorm", "softmax"):
        desk = Desk(program.spec)
        desk.whole(model, program, image)
        words, meant = getattr(desk.wanted[0].words, unit), desk.wanted[0].meant[unit]
        row, lane = np.argwhere(meant)[-1]
        words[row, lane] ^= 1
        words[~meant] ^= 1  # nobody looks at these
        (fault,) = faults(desk.simulate(hardware, tmp_path / unit))
        name = {"words": "drain"}.get(unit, unit)
        assert fault.startswith(f"{name}: word {row}, lane {lane}: golden {words[row, lane]}, RTL ")
    desk = Desk(program.spec)
    desk.run(program, image, counters={"array_busy": (1, 2)})
    assert re.match(r"array_busy must be 1 to 2, not \d+", faults(desk.simulate(hardware, tmp_path))[0])


def test_a_wrong_bit_of_a_weight_is_named(networks, hardware, tmp_path):
    (model, *_), (program, *_) = networks
    image = pictures(program, 1)[0]
    desk = Desk(program.spec)
    wanted = model(image[None])[0].reshape(-1)
    desk.run(program, image, wanted, words=with_a_wrong_weight(program))
    desk.simulate(hardware, tmp_path, dump=True)
    _, wrong, divergence = check_words(
        program, model, image, dumped(tmp_path / "run", 0, program.spec)
    )
    assert wrong[0] == divergence.tensor == "blocks.1.mlp.fc1" + SUMS
    assert divergence.golden != divergence.rtl


def test_words_that_never_came_are_named(networks, hardware, tmp_path):
    (model, *_), (program, *_) = networks
    image = pictures(program, 1)[0]
    desk = Desk(program.spec)
    desk.run(program, image, words=program.words[: len(program.words) // 2], error=Error.ENDED)
    assert faults(desk.simulate(hardware, tmp_path, dump=True)) == [None]
    words = dumped(tmp_path / "run", 0, program.spec)
    _, _, divergence = check_words(program, model, image, words)
    assert divergence.rtl is None
    more = replace(words, softmax=np.concatenate([words.softmax, words.softmax]))
    assert check_words(program, model, image, more)[2] is not None


def test_expectations_that_are_not_met_fail(networks, hardware, tmp_path):
    (model, *_), (program, *_) = networks
    image = pictures(program, 1)[0]
    wanted = model(image[None])[0].reshape(-1)
    desk = Desk(program.spec)
    desk.run(program, image, wanted + np.eye(len(wanted), dtype=np.int64)[2])
    desk.run(program, image, wanted, error=Error.BUS)
    desk.run(program, image, wanted, limit=100)
    found = faults(desk.simulate(hardware, tmp_path))
    assert found[0].startswith(f"output 2 must be {wanted[2] + 1}, not {wanted[2]}")
    assert found[1].startswith("error must be 4, not 0")
    assert found[2].startswith("no interrupt in 100 cycles")


def test_broken_rules_of_the_bus_are_found(networks, hardware, tmp_path):
    """One design that breaks all of them: requests that change, cross 4 KiB, begin between words, wrap."""
    broken, wires = hardware, ["  reg flicker = 0;\n  always @(posedge clk) flicker <= ~flicker;\n"]
    for port, bits, expression in (
        ("m_axi_araddr", 64, "inner_m_axi_araddr | 64'd4094"),
        ("m_axi_arlen", 8, "inner_m_axi_arlen ^ {7'd0, flicker}"),
        ("irq", 1, "inner_irq | rst"),
    ):
        assert broken.count(f".{port}({port})") == 1
        broken = broken.replace(f".{port}({port})", f".{port}(inner_{port})")
        wires.append(f"  wire [{bits - 1}:0] inner_{port};\n  assign {port} = {expression};\n")
    broken, count = re.subn(r"(assign m_axi_arburst = )2'h1;", r"\g<1>2'h2;", broken, count=1)
    assert count == 1
    broken = broken.replace("endmodule", "".join(wires) + "endmodule", 1)
    program = networks[1][0]
    desk = Desk(program.spec)
    desk.run(program, pictures(program, 1)[0])
    (fault,) = faults(desk.simulate(broken, tmp_path, bus=Bus(1, 128, 1)))
    assert fault.startswith("rules 0b000011111 are broken")


def test_work_behind_the_end_of_a_run_is_found(networks, hardware, tmp_path):
    broken, count = re.subn(r"(assign biased__valid) = under_way.*;", r"\1 = 1'h1;", hardware, count=1)
    assert count == 1
    program = networks[1][0]
    desk = Desk(program.spec)
    desk.run(program, pictures(program, 1)[0])
    (fault,) = faults(desk.simulate(broken, tmp_path))
    assert fault.startswith("rules 0b100000000 are broken")


def test_registers_that_take_half_a_write_are_found(networks, hardware, tmp_path):
    (model, *_), (program, *_) = networks
    port = ".s_axil_wstrb(s_axil_wstrb)"
    assert hardware.count(port) == 1
    desk = Desk(program.spec)
    desk.whole(model, program, pictures(program, 1)[0])
    with pytest.raises(RunFailed, match=r"^Registers: .*\.written': 'write of ") as failed:
        desk.simulate(hardware.replace(port, ".s_axil_wstrb(4'hf)"), tmp_path, registers=True)
    names = ("still", "decoded", "written")
    assert [name for name in names if f".{name}'" in str(failed.value)] == list(names)
