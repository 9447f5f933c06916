# SPDX-License-Identifier: Apache-2.0
"""The cycle model's own arithmetic; ``test_sim_*.py`` holds it against the RTL, cycle by cycle."""

from __future__ import annotations

import itertools

import pytest

from golden.cycles import QUEUE_DEPTH, RowPipeline, stream_pipeline, tree_levels
from golden.gelu import GeluSpec, gelu_pipeline
from golden.layernorm import LayerNormSpec, layernorm_pipeline
from golden.pool import PoolSpec, pool_pipeline
from golden.requant import RequantSpec, requant_pipeline
from golden.residual import ResidualSpec, residual_pipeline
from golden.softmax import SoftmaxSpec, softmax_pipeline

STREAMS = [
    requant_pipeline(RequantSpec(), 8),
    gelu_pipeline(GeluSpec(), 1),
    residual_pipeline(ResidualSpec(), 32),
    pool_pipeline(PoolSpec(), 4),
]
PIPELINES = STREAMS + [
    build(lanes)
    for lanes in (1, 2, 3, 8, 32)
    for build in (
        lambda n: softmax_pipeline(SoftmaxSpec(), n),
        lambda n: layernorm_pipeline(LayerNormSpec(), n),
    )
]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_rows_of_one_length_follow_without_a_bubble(pipeline: RowPipeline) -> None:
    rows = pipeline.schedule([197] * 64)
    beats = pipeline.beats(197)
    assert [row.first_out for row in rows] == [
        pipeline.latency(197) + beats * index for index in range(64)
    ]
    assert rows[-1].last_out + 1 == 64 * beats + pipeline.latency(197)
    assert all(row.last_in - row.first_in == beats - 1 for row in rows)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_phases_never_overlap_in_one_stage(pipeline: RowPipeline) -> None:
    lengths = [1, 577, 1, 1, 49, 2, 197, 3] * 3 + [1] * 2 * QUEUE_DEPTH + [257]
    rows = pipeline.schedule(lengths)
    for before, after in itertools.pairwise(rows):
        assert after.first_in > before.last_in and after.first_out > before.last_out
    for row, length in zip(rows, lengths, strict=True):
        assert row.last_out - row.first_out == pipeline.beats(length) - 1
        assert row.first_out >= row.first_in + pipeline.latency(length)


@pytest.mark.parametrize("pipeline", STREAMS)
def test_a_stream_unit_has_one_latency_and_keeps_no_row(pipeline: RowPipeline) -> None:
    assert not pipeline.waits and not pipeline.max_beats and not pipeline.slack
    assert {pipeline.latency(length) for length in (1, 5, 197, 4096)} == {pipeline.drain}
    # Each beat leaves as many cycles after its arrival as any other, whatever the rows around it.
    for row in pipeline.schedule([1, 4096, *[1] * 3 * QUEUE_DEPTH, 197], start=7):
        assert row.first_out - row.first_in == row.last_out - row.last_in == pipeline.drain


def test_the_latencies_of_the_stream_units() -> None:
    """Registers, and a cycle of the output queue."""
    assert [pipeline.drain for pipeline in STREAMS] == [10, 3, 11, 10]
    assert stream_pipeline(1, 5).drain == 6
    with pytest.raises(ValueError, match=r"^Lanes must be from 1 to 32, not 0$"):
        gelu_pipeline(GeluSpec(), 0)


def test_the_queue_of_rows_binds() -> None:
    """Dozens of one-beat rows behind a long one wait for their places; fewer do not."""
    pipeline = softmax_pipeline(SoftmaxSpec(), 1)
    rows = pipeline.schedule([1024] + [1] * 2 * QUEUE_DEPTH)
    gaps = [b.first_in - a.last_in for a, b in itertools.pairwise(rows)]
    assert set(gaps[: QUEUE_DEPTH - 1]) == {1} and max(gaps) > 100


@pytest.mark.parametrize(("lanes", "levels"), [(1, 0), (2, 1), (3, 2), (8, 3), (32, 5)])
def test_tree_levels(lanes: int, levels: int) -> None:
    assert tree_levels(lanes) == levels


def test_lanes_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"^Lanes must be from 1 to 32, not 33$"):
        softmax_pipeline(SoftmaxSpec(), 33)
