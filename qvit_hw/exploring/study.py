# SPDX-License-Identifier: Apache-2.0
"""The search: a study of Optuna in a storage that several processes, or machines, share.

A study is of one set-up: model, images, hardware and tools. Whatever of these changes, it is another study of
the same storage, so that no point is beside one that it cannot be compared with.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from qvit_hw.errors import UserError
from qvit_hw.exploring.measured import Measured, objectives
from qvit_hw.exploring.space import SPACE, Choice, Space, starts

__all__ = ["Point", "front", "open_study", "points", "search"]

_PRIME = 100_003


@dataclass(frozen=True)
class Point:
    """A choice that was tried, and what it gave."""

    number: int
    choice: Choice
    measured: Mapping[str, Any]
    values: tuple[float, ...]


def open_study(storage: str, setup: Mapping[str, Any], frequency: bool) -> optuna.Study:
    """Return the study of a set-up, made now or found in the storage: an URL, or the path of a journal."""
    logging.getLogger("optuna").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    digest = hashlib.sha256(json.dumps(setup, sort_keys=True).encode()).hexdigest()[:12]
    try:
        if "://" in storage:
            kept: Any = optuna.storages.get_storage(storage)
        else:
            Path(storage).parent.mkdir(parents=True, exist_ok=True)
            _check_journal(Path(storage))
            kept = JournalStorage(JournalFileBackend(storage))
        study = optuna.create_study(
            storage=kept,
            study_name=f"qvit-hw {setup['model']} {digest}",
            directions=[StudyDirection[each.upper()] for each in objectives(frequency).values()],
            load_if_exists=True,
        )
        study.set_user_attr("setup", dict(setup))
    except UserError:
        raise
    except Exception as error:  # whatever the database or the file has to say
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"Storage {storage!r} cannot be used: {reason}") from error
    return study


def _check_journal(path: Path) -> None:
    """Raise UserError, before anything is written, for a file that is no journal of ours.

    The half line that a write leaves which broke off is dropped: the next one would be appended to it.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"Storage {str(path)!r} must be a file or an URL, not a folder.")
    if not path.exists() or path.stat().st_size == 0:
        return
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines() or [content], 1):
            try:
                known = isinstance(json.loads(line).get("op_code"), int)
            except (ValueError, AttributeError, RecursionError):
                known = False
            if not known:
                raise UserError(f"Storage {str(path)!r} is no journal (line {number}): it is left alone.")
        if whole < len(content):
            os.truncate(path, whole)
    finally:
        lock.release()


def search(
    study: optuna.Study,
    attempt: Callable[[Choice], Measured],
    trials: int,
    seed: int,
    frequency: bool,
    told: Callable[[FrozenTrial], None] = lambda trial: None,
    space: Space = SPACE,
) -> None:
    """Try so many choices; one that cannot be built fails, and the search goes on.

    The choices follow from ``seed`` and from what is in the study: alone, the same search tries the same.
    space: the same in every search of a study.
    """
    for start in starts(space):
        study.enqueue_trial(dict(start), skip_if_exists=True)

    def objective(trial: Trial) -> Sequence[float]:
        choice = {name: trial.suggest_categorical(name, values) for name, values in space.items()}
        known = next((point for point in points(study) if point.choice == choice), None)
        if known is None:
            measured = attempt(choice)
            record, values = measured.record(), measured.values(frequency)
        else:
            record, values = dict(known.measured), list(known.values)
        trial.set_user_attr("measured", record)
        return values

    for _ in range(trials):
        before = len(study.get_trials(deepcopy=False))
        study.sampler = TPESampler(seed=(seed * _PRIME + before) % 2**32)
        study.optimize(objective, n_trials=1, catch=(UserError,), callbacks=[lambda _, each: told(each)])


def points(study: optuna.Study) -> list[Point]:
    """Everything that was tried to its end, each choice once, in order."""
    found: dict[str, Point] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if "measured" in trial.user_attrs:
            point = Point(trial.number, dict(trial.params), trial.user_attrs["measured"], tuple(trial.values))
            found.setdefault(json.dumps(trial.params, sort_keys=True), point)
    return list(found.values())


def front(found: Sequence[Point], directions: Sequence[str]) -> set[int]:
    """Numbers of the points that none is at least as good as in everything, and better in something."""
    signs = [1 if direction == "maximize" else -1 for direction in directions]
    scores = {
        point.number: tuple(sign * value for sign, value in zip(signs, point.values, strict=True))
        for point in found
    }

    def beaten(number: int) -> bool:
        mine = scores[number]
        return any(
            other != mine and all(a >= b for a, b in zip(other, mine, strict=True))
            for other in scores.values()
        )

    return {number for number in scores if not beaten(number)}
