# SPDX-License-Identifier: Apache-2.0
"""One page that links the others of a folder: report, evaluation, proofs, coverage, mutation and so on.

    python -m qvit_hw.index [--folder build]

writes ``index.html`` into the folder: for each page that lies in it, at any depth, a card with its one
number, its verdict and its date, and a grey one with the command that makes it for each kind that is missing.
A page tells its number in its heading; the verdict is ``passed`` of the JSON beside it, unknown if there is
none of the page's schema. A file that only has the name of a page is left out, and told.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from rich.console import Console

from golden.tensorfile import read_json
from qvit_hw.errors import UserError
from qvit_hw.outputs import told, write_files
from qvit_hw.report_page.frame import render

__all__ = ["INDEX", "KINDS", "Kind", "Page", "find_pages", "render_index", "run"]

INDEX = "index.html"
MARK = re.compile(r"<title>[^<]*· qvit-hw(?: ·[^<]*)?</title>")
"""The title of every page of ours."""


@dataclass(frozen=True)
class Kind:
    """A kind of page: its file's stem, title, what it tells, and the command that makes it."""

    stem: str
    title: str
    about: str
    command: str

    @property
    def schema(self) -> str:
        """What the JSON beside such a page says that it is."""
        return f"qvit-hw/{self.stem}"


KINDS = (
    Kind("report", "Report", "Golden model against Verilog, bit for bit.", "make demo"),
    Kind(
        "evaluation",
        "Evaluation",
        "Accuracy, and where error enters.",
        "qvit-hw evaluate --bundle build/demo/bundle --out build/evaluation",
    ),
    Kind("proofs", "Proofs", "The units equal golden, for all inputs.", "make prove"),
    Kind(
        "coverage",
        "Coverage",
        "What the testbenches reach.",
        "python -m qvit_hw.cover --out build/coverage",
    ),
    Kind(
        "mutation",
        "Mutation",
        "Broken units that the testbenches find.",
        "python -m qvit_hw.mutate --out build/mutation",
    ),
    Kind("cost", "Cost", "Size and frequency of the units.", "make cost"),
    Kind("tradeoff", "Trade-off", "Accuracy against area.", "make explore"),
)


@dataclass(frozen=True)
class Page:
    """A page that was found. number, of: its heading.  passed: None where nothing says so."""

    kind: Kind
    place: str
    number: str
    of: str
    passed: bool | None
    date: str

    @property
    def link(self) -> str:
        """Where it is, as seen from the index."""
        return quote(self.place)


def run(*, folder: Path) -> int:
    """Write the index of a folder; return the exit status, 0. UserError if the folder will not do."""
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"Folder {str(folder)!r} does not exist: make a page first, such as make demo.")
    if not folder.is_dir():
        raise UserError(f"Folder {str(folder)!r} must be a folder, not a file.")
    pages = find_pages(folder)
    if not pages:
        raise UserError(f"Folder {str(folder)!r} has no page of ours: make one first, such as make demo.")
    out = folder / INDEX
    with told(out):
        if out.exists() and not MARK.search(_text(out)):
            raise UserError(f"Output {str(out)!r} is another page: it is left alone.")
        write_files({out: render_index(pages).encode("utf-8")})
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    known = {page.place for page in pages}
    if others := [place for _, _, place in _named(folder) if place not in known]:
        console.print(f"left out, as no page of ours: {', '.join(map(repr, others))}")
    console.print(f"{out}: {_count(len(pages), 'page')}")
    return 0


def find_pages(folder: Path) -> list[Page]:
    """The pages of ours in a folder at any depth, kind by kind; hidden folders are not looked at."""
    found = (_page(kind, path, place) for kind, path, place in _named(folder))
    return [page for page in found if page is not None]


def _named(folder: Path) -> Iterator[tuple[Kind, Path, str]]:
    """Files with the name of a kind of page, whoever wrote them: kind, path, place in the folder."""
    for kind in KINDS:
        for path in sorted(folder.rglob(f"{kind.stem}.html")):
            inside = path.relative_to(folder)
            if path.is_file() and not any(part.startswith(".") for part in inside.parts):
                yield kind, path, inside.as_posix()


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _page(kind: Kind, path: Path, place: str) -> Page | None:
    """What a file tells; None where it is no page of ours."""
    text = _text(path)
    if not MARK.search(text):
        return None
    heading = re.search(r"<h1[^>]*>(.*?)(?:<small[^>]*>(.*?)</small>\s*)?</h1>", text, re.DOTALL)
    number, of = (_plain(part or "") for part in heading.groups()) if heading else ("", "")
    date = datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()
    return Page(kind, place, number or kind.title, of or kind.about, _verdict(kind, path), date)


def _plain(part: str) -> str:
    """Text of a piece of HTML."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", part)).split())


def _verdict(kind: Kind, page: Path) -> bool | None:
    try:
        content = read_json(page.with_suffix(".json").read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("schema") != kind.schema:
        return None
    passed = content.get("passed")
    return passed if isinstance(passed, bool) else None


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def render_index(pages: list[Page]) -> str:
    """The page that links these pages."""
    there = {page.kind for page in pages}
    missing = [kind for kind in KINDS if kind not in there]
    verdicts = [page.passed for page in pages]
    told = [f"{verdicts.count(True)} passed", f"{verdicts.count(False)} failed"]
    if None in verdicts:
        told.append(f"{verdicts.count(None)} without a verdict")
    if missing:
        told.append(f"{_count(len(missing), 'kind')} of page not there")
    return render(
        "index.html.j2",
        kind="index",
        number=str(len(pages)),
        of="page of evidence" if len(pages) == 1 else "pages of evidence",
        passed=False if False in verdicts else (True if True in verdicts else None),
        css=("index.css",),
        summary=", ".join(told) + ".",
        pages=pages,
        missing=missing,
    )


if __name__ == "__main__":
    from .cli import main

    main("index")
