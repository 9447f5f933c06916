# SPDX-License-Identifier: Apache-2.0
"""Processes end with the command that began them."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.process import BaseProcess

import pytest

from qvit_hw.processes import ended_with


@pytest.fixture
def sleeper() -> Iterator[list[BaseProcess]]:
    """Processes that a test begins, ended behind it."""
    begun: list[BaseProcess] = []
    yield begun
    for process in begun:
        process.kill()
        process.join()


def _begin(begun: list[BaseProcess]) -> BaseProcess:
    begun.append(get_context("spawn").Process(target=time.sleep, args=(600,)))
    begun[-1].start()
    return begun[-1]


def test_an_interrupt_ends_what_was_begun_in_the_block_and_nothing_else(sleeper: list[BaseProcess]) -> None:
    before = _begin(sleeper)

    @ended_with()
    def work() -> None:
        _begin(sleeper)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    sleeper[1].join(60)
    assert sleeper[1].exitcode == -signal.SIGTERM
    assert before.is_alive()


def test_a_block_that_is_done_ends_nothing(sleeper: list[BaseProcess]) -> None:
    with ended_with():
        inside = _begin(sleeper)
    assert inside.is_alive()
