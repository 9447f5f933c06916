# SPDX-License-Identifier: Apache-2.0
"""One process or several that measure: each loads models and images for itself, from an :class:`Origin`.

Tasks are handed out as processes become free, and results come back in the order of the tasks: what is summed
up from them does not depend on the number of processes.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from qvit_hw.bundle import load_bundle
from qvit_hw.measuring import Subject, one_thread
from qvit_hw.models.labelled import Labelled, load_labelled

__all__ = ["Bench", "Crew", "Origin"]

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Origin:
    """Where models and images come from; options as of :func:`qvit_hw.evaluate.evaluate`."""

    bundle: Path
    data: str
    limit: int | None = None
    checkpoint: Path | None = None
    pretrained: bool = False
    class_map: Path | None = None
    unlabelled: bool = False


@dataclass(frozen=True, eq=False)
class Bench:
    """Three models and the images they are to see; model, bundle: what the manifest says of them."""

    subject: Subject
    data: Labelled
    model: Mapping[str, Any]
    bundle: Mapping[str, Any]

    @classmethod
    def load(cls, origin: Origin) -> Bench:
        """UserError for anything that will not do."""
        packed = load_bundle(origin.bundle)
        subject = Subject.load(packed, checkpoint=origin.checkpoint, pretrained=origin.pretrained)
        data = load_labelled(
            origin.data,
            subject.loaded,
            origin.limit,
            class_map=origin.class_map,
            unlabelled=origin.unlabelled,
        )
        about = {
            "name": origin.bundle.resolve().name,
            "sha256": packed.sha256,
            "preset": packed.manifest["preset"],
        }
        return cls(subject, data, packed.manifest["model"], about)


class Crew:
    """Calls functions of a bench and a task, here or in several processes; to be used with ``with``.

    origin: needed for more than one process.
    """

    def __init__(self, bench: Bench, jobs: int = 1, origin: Origin | None = None) -> None:
        self.bench = bench
        self.pool: ProcessPoolExecutor | None = None
        if jobs > 1:
            if origin is None:
                raise ValueError("Origin must be known for several processes, not None")
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(jobs, context, _start, (origin,))

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def map(
        self, function: Callable[[Bench, Task], Result], tasks: Sequence[Task]
    ) -> Iterator[Result]:
        """Yield the result of every task, in order. ``function`` must be of a module's top level."""
        if self.pool is None:
            with one_thread():
                yield from (function(self.bench, task) for task in tasks)
        else:
            with _environment(dict.fromkeys(_THREADS, "1")):  # for the processes that start now
                yield from self.pool.map(functools.partial(_call, function), tasks)


_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_bench: list[Bench] = []
"""The bench of a process of the crew."""


def _start(origin: Origin) -> None:
    torch.set_num_threads(1)
    _bench.append(Bench.load(origin))


def _call(function: Callable[[Bench, Task], Result], task: Task) -> Result:
    return function(_bench[0], task)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
