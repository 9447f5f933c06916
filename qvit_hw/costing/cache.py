# SPDX-License-Identifier: Apache-2.0
"""Figures that are known, in the user's cache folder, by the content that they depend on.

An entry that is damaged, or that somebody has changed, is none: it is measured again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from golden.tensorfile import read_json
from qvit_hw.outputs import write_files
from sim.runner import cache_folder

__all__ = ["entry_path", "key_of", "load", "store"]


def key_of(**parts: Any) -> str:
    """The hash of everything that figures depend on: the design, passes, versions of tools."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def entry_path(key: str) -> Path:
    """The file of an entry."""
    return cache_folder() / "cost" / f"{key[:32]}.json"


def load(key: str) -> Any:
    """What was stored under a key; None if nothing sound is there."""
    try:
        entry = read_json(entry_path(key).read_bytes())
        sound = entry["key"] == key and entry["sha256"] == _digest(entry["value"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry["value"] if sound else None


def store(key: str, value: Mapping[str, Any]) -> None:
    """Keep a value; a cache that cannot be written to is not an error."""
    path = entry_path(key)
    text = json.dumps({"key": key, "sha256": _digest(value), "value": value}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_files({path: text.encode()})
    except OSError:
        pass


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
