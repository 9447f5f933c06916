# SPDX-License-Identifier: Apache-2.0
"""A small bundle and the results that a simulation of it would leave, right or wrong as asked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from golden.layernorm import LayerNormSpec, layernorm, layernorm_pipeline
from golden.residual import ResidualSpec
from golden.softmax import SoftmaxSpec, softmax, softmax_pipeline
from golden.vit import VitModel
from qvit_hw.bundle import load_bundle
from qvit_hw.bundle_writer import LayerData, write_bundle
from qvit_hw.small_networks import Builder

TOKENS, HEADS, CHANNELS, LANES = 17, 2, 24, 8
LAYERNORM, SOFTMAX = LayerNormSpec(max_channels=64), SoftmaxSpec(max_tokens=64)
PIPELINES = {
    "layernorm": layernorm_pipeline(LAYERNORM, LANES),
    "softmax": softmax_pipeline(SOFTMAX, LANES),
}


def make_network() -> VitModel:
    """One block of 17 tokens, random but always the same; the accelerator can run it."""
    net = Builder(7, ResidualSpec(), SOFTMAX, LAYERNORM)
    x = net.embed(net.patch_embed(2, 1, CHANNELS), TOKENS - 1, 1, CHANNELS, 4)
    x = net.block("blocks.0", x, CHANNELS, HEADS)
    x = net.norm("norm", net.add("pool", "select", x, tokens=(0,)), CHANNELS)
    net.linear("head", x, CHANNELS, 5)
    return net.model(1, 8, 8)


def make_bundle(path: Path) -> Path:
    """Write a bundle of two LayerNorms and one attention, random but always the same."""
    rng, model, layers = np.random.default_rng(7), make_network(), []
    for name in ("blocks.0.norm1", "blocks.0.norm2"):
        codes = rng.integers(-128, 128, (TOKENS, CHANNELS))
        golden = layernorm(codes, LAYERNORM, model[name].params)
        layers.append(_data(name, "layernorm", codes, golden, golden + 0.25, {}, {}))
    scores = rng.integers(-300, 300, (HEADS * TOKENS, TOKENS))
    golden = softmax(scores, SOFTMAX, model["blocks.0.attn"].params)
    metrics = {"av_sqnr": 20.0, "av_sqnr_ideal": 20.05}
    extra = {"heads": HEADS, "tokens": TOKENS}
    layers.append(_data("blocks.0.attn", "softmax", scores, golden, golden - 0.25, metrics, extra))
    write_bundle(
        path,
        model={"name": "sample", "source": "made up", "input_size": [1, 8, 8]},
        preset="w8a8p4",
        observers={},
        images={"source": "none", "calibration": 1, "vectors": 1},
        specs={"layernorm": LAYERNORM, "softmax": SOFTMAX},
        nodes=model.nodes,
        input_size=model.input_size,
        plan={},
        scales={},
        layers=layers,
    )
    return path


def _data(
    name: str, op: str, codes: Any, golden: Any, exact: Any, metrics: Any, extra: Any
) -> LayerData:
    return LayerData(
        name=name,
        op=op,
        input=codes,
        golden=golden,
        reference=exact,
        scale={},
        metrics={"equal": 1.0, "max_difference": 0, **metrics},
        extra=extra,
    )


def make_results(
    folder: Path, bundle: Path, *, flip: str | None = None, waves: bool = True
) -> Path:
    """Write the results of simulating ``bundle``; in the layer ``flip`` one bit of one code is wrong."""
    folder.mkdir(parents=True)
    loaded = load_bundle(bundle)
    runs, outputs = [], {}
    for layer in loaded.layers:
        rtl = layer.golden().copy()
        divergence = None
        if layer.name == flip:
            rtl[2, 9] ^= 1
            waveform = "waves/first.vcd" if waves else None
            divergence = {
                "row": 2,
                "column": 9,
                "cycle": 61,
                "golden": int(layer.golden()[2, 9]),
                "rtl": int(rtl[2, 9]),
                "intermediates": [
                    {"name": "maximum", "golden": 299, "rtl": 299, "equal": True},
                    {"name": "total", "golden": 20011, "rtl": 20010, "equal": False},
                ],
                "waveform": waveform,
            }
            if waves:
                (folder / "waves").mkdir()
                (folder / "waves" / "first.vcd").write_text("$end\n")
        outputs[f"{layer.name}/rtl"] = rtl
        runs.append(run_entry(layer.op, layer.name, rtl.shape, int(flip == layer.name), divergence))
    runs.append(run_entry("softmax", None, (5, 33), 0, None) | {"scenario": "stall_both"})
    save_file(outputs, folder / "outputs.safetensors")
    document = {
        "schema": "qvit-hw/results",
        "version": 1,
        "bundle": {
            "path_name": bundle.name,
            "sha256": loaded.sha256,
            "model": "sample",
            "preset": "w8a8p4",
        },
        "bundle_path": f"../{bundle.name}",
        "simulator": {"name": "Verilator", "version": "5.48"},
        "rtl": {"qvit_layernorm": "0" * 64, "qvit_softmax": "1" * 64},
        "seed": 1,
        "runs": runs,
        "passed": flip is None,
    }
    (folder / "results.json").write_text(json.dumps(document))
    return folder


def run_entry(
    op: str, layer: str | None, shape: tuple[int, ...], mismatches: int, divergence: Any
) -> dict[str, Any]:
    """One run of results.json, its cycles as the cycle model says."""
    rows, length = shape
    pipeline = PIPELINES[op]
    cycles = pipeline.schedule([length] * rows)[-1].last_out + 1
    return {
        "op": op,
        "layer": layer,
        "scenario": "vectors",
        "lanes": LANES,
        "rows": rows,
        "row_length": length,
        "elements": rows * length,
        "mismatches": mismatches,
        "max_difference": mismatches,
        "float_equal": 0.99 if layer else None,
        "float_max_difference": 1 if layer else None,
        "sqnr_db": 30.5 if layer else None,
        "cycles": cycles,
        "cycles_predicted": cycles,
        "latency": pipeline.latency(length),
        "latency_predicted": pipeline.latency(length),
        "stall_in_cycles": 0,
        "stall_out_cycles": 0,
        "seconds": 0.5,
        "output": f"{layer}/rtl" if layer else None,
        "divergence": divergence,
        "fault": "elements differ" if mismatches else None,
    }
