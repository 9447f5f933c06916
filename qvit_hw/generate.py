# SPDX-License-Identifier: Apache-2.0
"""Verilog of the operators with AXI ports, and everything that a project needs beside it.

    python -m qvit_hw.generate [--bundle B] [--op layernorm|softmax|gelu|requant|residual|all]
                                [--lanes 8] [--port-bits 27] --out DIR

writes into DIR, for each operator, ``<top>.v`` and ``<top>.core`` (FuseSoC), and for all of them
``manifest.json`` (ports, widths, cycles, registers, hashes), ``registers.md`` and ``waivers.vlt``.
Without a bundle the default specs are built; ``all`` is layernorm and softmax, of which a bundle has
vectors, and the others are built without one. The same specs give the same bytes. All files are made
before the first one is put in its place, and nothing else in DIR is touched.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from golden.cycles import QUEUE_DEPTH
from golden.gelu import GeluSpec
from golden.layernorm import LayerNormSpec
from golden.requant import RequantSpec
from golden.residual import ResidualSpec
from golden.softmax import SoftmaxSpec
from qvit_hw.errors import UserError
from qvit_hw.outputs import check_folder, is_of, made_folder, told, write_files
from qvit_hw.progress import bars
from qvit_hw.rtl_folder import SCHEMA
from rtl.axi import ADAPTER_LATENCY, AxiLayerNorm, AxiRowUnit, AxiSoftmax, slot_bytes
from rtl.axi_stream import AxiGelu, AxiRequant, AxiResidual
from rtl.emit import emit, tool_versions

__all__ = ["OPERATORS", "WAIVERS", "build_unit", "run", "select"]

OPERATORS = ("layernorm", "softmax")
"""Operators whose vectors a bundle holds."""
DEFAULTS: dict[str, Any] = {
    "layernorm": LayerNormSpec(),
    "softmax": SoftmaxSpec(),
    "gelu": GeluSpec(),
    "requant": RequantSpec(),
    "residual": ResidualSpec(),
}
"""Every operator that has a unit, with the spec that is built where no bundle says another."""
LATENCY_LENGTHS = (1, 49, 64, 65, 192, 197, 257, 384, 577, 768)
"""Row lengths whose latency the manifest states."""
CORE_PROBES = {
    "softmax": {name: name for name in ("maximum", "total", "log_total")},
    # Both sums are ready in the same cycle: one strobe, which Yosys gives one name.
    "layernorm": {
        "total": "squares",
        **{name: name for name in ("squares", "variance", "rsqrt", "rsqrt_shift")},
    },
}
"""Statistics of a row that a testbench can read in the core, and whose strobe tells when."""
WAIVERS = """// SPDX-License-Identifier: Apache-2.0
// What `verilator --lint-only -Wall` says about Verilog written by Amaranth and cannot be said away in
// the source. Nothing else is waived: WIDTHTRUNC, LATCH, UNOPTFLAT, MULTIDRIVEN and CASEINCOMPLETE stay.
`verilator_config
// All modules of a unit are in one file, as a whole that is easy to hand on.
lint_off -rule DECLFILENAME -file "*qvit_*.v"
// Amaranth gives every register its reset value as its power-up value, too: `reg x = 0;`.
lint_off -rule PROCASSINIT -file "*qvit_*.v"
// Amaranth names each field of a structure in a wire of its own, for waveforms, and leaves to the
// synthesis the bits of an intermediate result that a slice drops.
lint_off -rule UNUSEDSIGNAL -file "*qvit_*.v"
// One assignment in each module wakes `always @*` at time zero, after every process has begun to wait.
lint_off -rule INITIALDLY -file "*qvit_*.v"
// Yosys writes constants and operands at their own width; Verilog extends them, by sign where signed.
lint_off -rule WIDTHEXPAND -file "*qvit_*.v"
"""


@dataclass(frozen=True)
class BuiltUnit:
    """One generated unit: its entry in the manifest and its Verilog."""

    entry: dict[str, Any]
    verilog: str


def select(op: str, available: tuple[str, ...] = OPERATORS) -> tuple[str, ...]:
    """Return the operators that ``op`` names; UserError for an unknown one."""
    if op == "all":
        return available
    if op not in DEFAULTS:
        raise UserError(f"Operator must be {', '.join(DEFAULTS)} or all, not {op!r}.")
    if op not in available:
        raise UserError(f"Operator {op!r} is not there: found {', '.join(available) or 'none'}.")
    return (op,)


def _top(op: str, spec: Any, lanes: int, port_bits: int) -> AxiRowUnit:
    """The AXI top of an operator; those without multipliers do not ask how wide theirs are."""
    if op == "softmax":
        return AxiSoftmax(spec, lanes=lanes)
    if op == "gelu":
        return AxiGelu(spec, lanes=lanes)
    if op == "requant":
        return AxiRequant(spec, lanes=lanes, port_bits=port_bits)
    if op == "residual":
        return AxiResidual(spec, lanes=lanes, port_bits=port_bits)
    return AxiLayerNorm(spec, lanes=lanes, port_bits=port_bits)


def build_unit(op: str, spec: Any, lanes: int, port_bits: int = 27) -> BuiltUnit:
    """Return the unit of an operator: Verilog and manifest entry."""
    unit = _top(op, spec, lanes, port_bits)
    pipeline, top = unit.core.pipeline, f"qvit_{op}"
    verilog = emit(unit, top)
    core = f"{top}_core"
    assert f"\nmodule {core}" in verilog
    probes = CORE_PROBES.get(op, {})
    for name, strobe in probes.items():
        for probe in (f"probe_{name}", f"probe_{strobe}_valid"):
            assert re.search(rf"(?m)^  (reg|wire) [^;]*\b{probe}\b", verilog), probe
    ports = [
        {
            "name": name,
            "direction": "input" if member.flow.name == "In" else "output",
            "width": member.shape if isinstance(member.shape, int) else len(member.shape),
        }
        for name, member in unit.signature.members.items()
    ]
    widths = {
        name: {
            "bits": interval.bits,
            "signed": interval.signed,
            "low": interval.low,
            "high": interval.high,
        }
        for name, interval in spec.bounds.items()
    }
    lengths = sorted({n for n in LATENCY_LENGTHS if n <= unit.longest} | {unit.longest})
    entry = {
        "op": op,
        "top": top,
        "file": f"{top}.v",
        "sha256": hashlib.sha256(verilog.encode()).hexdigest(),
        "spec": asdict(spec),
        "lanes": lanes,
        "port_bits": port_bits,
        "ports": ports,
        "streams": {
            "input": {
                "bits": unit.in_bits,
                "slot_bytes": slot_bytes(unit.in_bits),
                "signed": True,
                "mask": unit.has_mask,
            },
            "output": {
                "bits": unit.out_bits,
                "slot_bytes": slot_bytes(unit.out_bits),
                "signed": unit.out_signed,
            },
        },
        "widths": widths,
        "cycles": {
            "waits": list(pipeline.waits),
            "drain": pipeline.drain,
            "adapter": ADAPTER_LATENCY,
            "queue_depth": QUEUE_DEPTH,
        },
        "latency": {str(n): pipeline.latency(n) + ADAPTER_LATENCY for n in lengths},
        "registers": [asdict(register) for register in unit.registers],
        "probes": [
            {
                "name": name,
                "signal": f"core.probe_{name}",
                "valid": f"core.probe_{strobe}_valid",
                "signed": name in spec.bounds and spec.bounds[name].signed,
            }
            for name, strobe in probes.items()
        ],
    }
    return BuiltUnit(entry, verilog)


def _core_file(entry: dict[str, Any], version: str) -> str:
    """FuseSoC description (CAPI=2) with a target for lint."""
    top, file = entry["top"], entry["file"]
    return "\n".join(
        (
            "CAPI=2:",
            "# SPDX-License-Identifier: Apache-2.0",
            "",
            f"name: qvit-hw:units:{top}:{version}",
            f"description: {entry['op']} of a ViT, {entry['lanes']} lanes, AXI4-Stream and AXI4-Lite",
            "",
            "filesets:",
            "  rtl:",
            "    files:",
            f"      - {file}",
            "    file_type: verilogSource",
            "  lint:",
            "    files:",
            "      - waivers.vlt",
            "    file_type: vlt",
            "",
            "targets:",
            "  default: &default",
            "    filesets:",
            "      - rtl",
            f"    toplevel: {top}",
            "  lint:",
            "    <<: *default",
            "    default_tool: verilator",
            "    filesets:",
            "      - rtl",
            "      - lint",
            "    tools:",
            "      verilator:",
            "        mode: lint-only",
            "        verilator_options:",
            "          - -Wall",
            "",
        )
    )


def _registers_page(entries: list[dict[str, Any]]) -> str:
    """The register map for people."""
    lines = ["# Registers", "", "AXI4-Lite, 32-bit words, 16-bit byte addresses.", ""]
    lines += [
        "WO: write-only parameter, answered once the unit has taken it; reading it answers SLVERR.",
        "RO: read-only; writing it answers SLVERR. RW1C: a one written clears the bit. A write with",
        "strobes missing answers SLVERR, an address that is not listed DECERR; neither has an effect.",
        "bits: how many low bits of the word count; a signed parameter is in two's complement.",
        "",
    ]
    for entry in entries:
        lines += [f"## {entry['top']}", "", "| offset | name | access | bits | meaning |"]
        lines += ["|---|---|---|---|---|"]
        for register in entry["registers"]:
            offset, words = register["offset"], register["words"]
            span = f"0x{offset:04X}"
            if words > 1:
                span += f" + 4 x channel, to 0x{offset + 4 * (words - 1):04X}"
            lines.append(
                f"| {span} | {register['name']} | {register['access']} | {register['width'] or 'none'} "
                f"| {register['description']} |"
            )
        stream = entry["streams"]
        told = [
            f"`{port}`: {entry['lanes']} elements of {side['bits']} bits, each in "
            f"{8 * side['slot_bytes']} bits, {'sign' if side['signed'] else 'zero'}-extended."
            for port, side in (("s_axis", stream["input"]), ("m_axis", stream["output"]))
        ]
        lines += ["", *told, ""]
    return "\n".join(lines)


def _version() -> str:
    """Version of the project, in a checkout that is not installed, too."""
    try:
        return metadata.version("qvit-hw")
    except metadata.PackageNotFoundError:
        project = Path(__file__).parent.parent / "pyproject.toml"
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])


def _specs(bundle: Path | None) -> dict[str, Any]:
    if bundle is None:
        return DEFAULTS
    from qvit_hw.bundle import load_bundle

    return dict(load_bundle(bundle).units())


def _check_manifest(out: Path) -> None:
    """Raise UserError if there is a manifest that is of something else; other files stay beside ours."""
    manifest = out / "manifest.json"
    if manifest.exists() and not is_of(manifest, SCHEMA):
        raise UserError(f"Output {str(out)!r} holds another manifest.json: it is left alone.")


def _write(out: Path, files: dict[str, str]) -> None:
    """Put all files in place at once."""
    with made_folder(out), told(out):
        write_files({out / file: text.encode("utf-8") for file, text in files.items()})


def run(
    *,
    out: Path,
    bundle: Path | None = None,
    op: str = "all",
    lanes: int = 8,
    port_bits: int = 27,
) -> int:
    """Write the Verilog and all that belongs to it into ``out``; return the exit status.

    ``port_bits``: the wider port of the target's multipliers (``rtl.layernorm``).
    """
    if isinstance(lanes, bool) or not isinstance(lanes, int) or not 1 <= lanes <= 32:
        raise UserError(f"Lanes must be from 1 to 32, not {lanes!r}.")
    if isinstance(port_bits, bool) or not isinstance(port_bits, int) or not 18 <= port_bits <= 27:
        raise UserError(f"Multiplier port width must be from 18 to 27, not {port_bits!r}.")
    select(op, tuple(DEFAULTS))  # an unknown operator is told before a bundle is read
    check_folder(out)
    _check_manifest(out)
    specs = _specs(bundle)
    available = tuple(name for name in OPERATORS if name in specs)
    operators = select(op, available if op in ("all", *OPERATORS) else tuple(specs))
    version = _version()
    units: list[BuiltUnit] = []
    with bars(counted=False) as progress:
        for name in operators:
            task = progress.add_task(f"emit {name}, {lanes} lanes", total=1)
            units.append(build_unit(name, specs[name], lanes, port_bits))
            progress.advance(task)
    entries = [unit.entry for unit in units]
    manifest = {
        "schema": SCHEMA,
        "version": 1,
        "generator": {"qvit_hw": version, **tool_versions()},
        "units": entries,
    }
    files = {unit.entry["file"]: unit.verilog for unit in units}
    files |= {f"{entry['top']}.core": _core_file(entry, version) for entry in entries}
    files["registers.md"] = _registers_page(entries)
    files["waivers.vlt"] = WAIVERS
    files["manifest.json"] = json.dumps(manifest, indent=1) + "\n"
    _write(out, files)
    return 0


if __name__ == "__main__":
    from qvit_hw.cli import main

    main("generate")
