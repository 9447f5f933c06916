# SPDX-License-Identifier: Apache-2.0
"""One style for every page: the frame that the pages of proofs, coverage, mutation, cost and so on fill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

__all__ = ["FOLDER", "environment", "render"]

FOLDER = Path(__file__).parent


def environment(filters: Mapping[str, Callable[..., Any]] | None = None) -> Environment:
    """The templates of this folder; whatever a page is given is escaped, and ``thousands`` writes a count."""
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"thousands": "{:,}".format, **(filters or {})}
    return made


def render(
    template: str,
    *,
    kind: str,
    number: str,
    of: str,
    passed: bool | None = None,
    css: tuple[str, ...] = (),
    js: tuple[str, ...] = (),
    filters: Mapping[str, Callable[..., Any]] | None = None,
    **content: Any,
) -> str:
    """Return a page, one file that needs nothing from elsewhere.

    template: one that extends ``frame.html.j2``.  kind: what the page is of.  number, of: its one number and
    what it counts.  passed: the verdict, None where there is none.  css, js: files of this folder that join
    ``style.css`` and ``script.js``.  content: what the template asks for.
    """
    return (
        environment(filters)
        .get_template(template)
        .render(
            kind=kind,
            headline={"number": number, "of": of},
            passed=passed,
            css=_texts("style.css", *css),
            js=_texts("script.js", *js),
            **content,
        )
    )


def _texts(*names: str) -> str:
    return "".join((FOLDER / name).read_text("utf-8") for name in names)
