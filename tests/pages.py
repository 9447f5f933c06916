# SPDX-License-Identifier: Apache-2.0
"""What every page must be: well-formed, one file, nothing from elsewhere."""

from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input", "col"}


class _Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href") and value and not value.startswith(("#", "data:")):
                self.faults.append(f"{tag} refers to {value}")

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"{tag} ends where it should not")


def page_faults(page: str) -> list[str]:
    """Faults of a page: tags that do not match, references to anything outside of it."""
    checker = _Checker()
    checker.feed(page)
    checker.close()
    return checker.faults + [f"{tag} is not closed" for tag in checker.open]
