# SPDX-License-Identifier: Apache-2.0
"""Time of the golden operators for one image: ``python benchmarks/operators.py``.

Every operator at the shapes of DeiT-Tiny and ViT-Small, 197 tokens, beside float PyTorch: how long one call
takes (the fastest of many, in turn with all others, so that a disturbance of the machine does not hit one
operator alone), nanoseconds for each element of its output, and its share of the image. Row operators that
PyTorch has in one call have its time as well. This is a benchmark, not a test.

OPENBLAS_CORETYPE is taken out of the environment: it would tell NumPy's BLAS to use the instructions of
another processor than this one. Both libraries use as many threads as OMP_NUM_THREADS says, else all cores.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any

os.environ.pop("OPENBLAS_CORETYPE", None)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from golden.attention import (
    AttendSpec,
    ScoreParams,
    ScoreSpec,
    attend,
    attention_scores,
)
from golden.gelu import GeluParams, GeluSpec, gelu
from golden.layernorm import LayerNormParams, LayerNormSpec, layernorm
from golden.linear import LinearParams, LinearSpec, linear
from golden.patch_embed import PatchEmbedSpec, patch_embed
from golden.requant import RequantParams
from golden.residual import ResidualParams, ResidualSpec, residual
from golden.softmax import SoftmaxParams, SoftmaxSpec, softmax

BLOCKS, TOKENS, HEAD = 12, 197, 64
MODELS = {"DeiT-Tiny": 192, "ViT-Small": 384}


@dataclass(frozen=True)
class Case:
    """An operator with its inputs: ``calls`` an image, ``elements`` of output a call."""

    name: str
    calls: int
    elements: int
    run: Callable[[], Any]
    peer: Callable[[], Any] | None = None


def cases(width: int) -> list[Case]:
    """All operators of a network of ``width`` channels; inputs are drawn as trained networks have them."""
    rng, heads, hidden = np.random.default_rng(0), width // HEAD, 4 * width
    torch.manual_seed(0)

    def bell(shape: tuple[int, ...], spread: float) -> Any:
        return np.clip(rng.normal(0, spread, shape), -127, 127).astype(np.int8)

    def requant(channels: int, shift: int) -> RequantParams:
        return RequantParams(
            multiplier=rng.integers(1 << 15, 1 << 16, channels),
            shift=np.full(channels, shift),
            zero_point=0,
        )

    def layer(name: str, inner: int, out: int, calls: int, codes: bool) -> Case:
        spec = LinearSpec(in_features=inner, out_bits=8 if codes else None)
        params = LinearParams(
            weight=bell((out, inner), 30),
            bias=rng.integers(-5000, 5000, out),
            requant=requant(out, 26) if codes else None,
        )
        x = bell((1, TOKENS, inner), 30)
        float_x, float_w = torch.randn(1, TOKENS, inner), torch.randn(out, inner)
        float_b = torch.randn(out)
        return Case(
            name,
            calls,
            TOKENS * out,
            lambda: linear(x, spec, params),
            lambda: torch.nn.functional.linear(float_x, float_w, float_b),
        )

    stream, norm = bell((1, TOKENS, width), 30), LayerNormSpec()
    norm_params = LayerNormParams(
        zero_point=3,
        eps=5000,
        point=10,
        shift=rng.integers(0, 4, width),
        gain=rng.integers(10000, 30000, width),
        offset=rng.integers(-(1 << 22), 1 << 22, width),
    )
    float_stream = torch.randn(1, TOKENS, width)
    qkv = bell((1, TOKENS, 3 * width), 40)
    q, k, v = qkv.reshape(1, TOKENS, 3, heads, HEAD).transpose(2, 0, 3, 1, 4)
    tq, tk, tv = torch.randn(3, 1, heads, TOKENS, HEAD)
    probabilities = torch.softmax(torch.randn(1, heads, TOKENS, TOKENS), -1)
    score_params = ScoreParams(requant(heads, 26))
    scores = attention_scores(q, k, ScoreSpec(), score_params)
    codes = softmax(scores, SoftmaxSpec(), SoftmaxParams(frac=4))
    attend_params = requant(heads, 30)
    table = GeluParams(table=rng.integers(-128, 128, 256))
    fc1, float_fc1 = bell((1, TOKENS, hidden), 30), torch.randn(1, TOKENS, hidden)
    branch = rng.integers(-100_000, 100_000, (1, TOKENS, width)).astype(np.int32)
    stream_params = ResidualParams(
        in_zero_point=3,
        in_shift=rng.integers(0, 4, width),
        gain=1 << 23,
        multiplier=rng.integers(1 << 14, 1 << 16, width),
        shift=23,
        zero_point=-2,
        out_shift=rng.integers(0, 4, width),
    )
    image = rng.integers(0, 256, (1, 3, 224, 224), dtype=np.uint8)
    patch_params = LinearParams(weight=bell((width, 768), 30), bias=np.zeros(width, int))
    float_image = torch.randn(1, 3, 224, 224)
    kernel = torch.randn(width, 3, 16, 16)
    square = TOKENS * TOKENS * heads
    return [
        Case(
            "patch_embed",
            1,
            196 * width,
            lambda: patch_embed(image, PatchEmbedSpec(), patch_params),
            lambda: torch.nn.functional.conv2d(float_image, kernel, stride=16),
        ),
        Case(
            "layernorm",
            2 * BLOCKS + 1,
            TOKENS * width,
            lambda: layernorm(stream, norm, norm_params),
            lambda: torch.nn.functional.layer_norm(float_stream, (width,)),
        ),
        layer("linear qkv", width, 3 * width, BLOCKS, True),
        Case(
            "scores",
            BLOCKS,
            square,
            lambda: attention_scores(q, k, ScoreSpec(), score_params),
            lambda: tq @ tk.transpose(-1, -2),
        ),
        Case(
            "softmax",
            BLOCKS,
            square,
            lambda: softmax(scores, SoftmaxSpec(), SoftmaxParams(frac=4)),
            lambda: torch.softmax(probabilities, -1),
        ),
        Case(
            "attend",
            BLOCKS,
            TOKENS * width,
            lambda: attend(codes, v, AttendSpec(), attend_params),
            lambda: probabilities @ tv,
        ),
        layer("linear proj", width, width, BLOCKS, False),
        Case(
            "residual",
            2 * BLOCKS + 1,
            TOKENS * width,
            lambda: residual(stream, branch, ResidualSpec(), stream_params),
            lambda: float_stream + float_stream,
        ),
        layer("linear fc1", width, hidden, BLOCKS, True),
        Case(
            "gelu",
            BLOCKS,
            TOKENS * hidden,
            lambda: gelu(fc1, GeluSpec(), table),
            lambda: torch.nn.functional.gelu(float_fc1),
        ),
        layer("linear fc2", hidden, width, BLOCKS, False),
    ]


def fastest(functions: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Least seconds of each function, called in turn."""
    least = [inf] * len(functions)
    for _ in range(rounds):
        for index, function in enumerate(functions):
            start = perf_counter()
            function()
            least[index] = min(least[index], perf_counter() - start)
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    console = Console(width=100)
    for model in options.model:
        found = cases(MODELS[model])
        ours = fastest([case.run for case in found], options.rounds)
        floats = fastest([case.peer for case in found if case.peer], options.rounds)
        whole = sum(case.calls * time for case, time in zip(found, ours, strict=True))
        peers = sum(case.calls * time for case, time in zip(found, floats, strict=True))
        table = Table(title=f"{model}, one image, {torch.get_num_threads()} thread(s)")
        table.add_column("operator")
        for name in (
            "calls",
            "us a call",
            "ns an element",
            "ms an image",
            "share",
            "PyTorch float",
        ):
            table.add_column(name, justify="right")
        for case, time, peer in zip(found, ours, floats, strict=True):
            table.add_row(
                case.name,
                str(case.calls),
                f"{time * 1e6:.0f}",
                f"{time / case.elements * 1e9:.2f}",
                f"{case.calls * time * 1e3:.2f}",
                f"{case.calls * time / whole:.1%}",
                f"x {time / peer:.2f}",
            )
        table.add_section()
        table.add_row("image", "", "", "", f"{whole * 1e3:.2f}", "", f"x {whole / peers:.2f}")
        console.print(table)


if __name__ == "__main__":
    main()
