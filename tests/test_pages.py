# SPDX-License-Identifier: Apache-2.0
"""Every kind of page, opened in a browser: it renders, asks for nothing, answers, and fits a phone."""

import shutil

import pytest
from page_samples import SAMPLES
from playwright.sync_api import sync_playwright

from qvit_hw.index import KINDS, run

pytestmark = pytest.mark.browser

WIDTHS = {"desk": 1280, "phone": 390}


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


class Opened:
    """A page in a window of some width, and whatever it complained of or asked for."""

    def __init__(self, browser, path, width=1280):
        self.errors, self.requests = [], []
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.on("console", lambda message: self.heard(message.type, message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri(), wait_until="load")

    def heard(self, kind, text):
        if kind in ("error", "warning"):
            self.errors.append(text)

    def ask(self, script, *args):
        return self.page.evaluate(script, *args)

    def complaints(self):
        """What was logged, what was asked for from elsewhere, and what sticks out to the right."""
        outside = [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))]
        return self.errors + outside + self.ask(STICKING_OUT) + self.ask(CUT)


CUT = """() => [...document.querySelectorAll(".shot .n, .card p, .page p, .where dd")]
  .filter((node) => node.offsetParent)
  .map((node) => [node, node.closest(".shot, .card, .page, section").getBoundingClientRect().right])
  .filter(([node, right]) => node.getBoundingClientRect().right > right - 4)
  .map(([node]) => `${node.textContent.trim()} is cut`)
"""
STICKING_OUT = """() => {
  const root = document.documentElement;
  if (root.scrollWidth <= root.clientWidth) return [];
  const inside = (node) => {
    for (let up = node.parentElement; up; up = up.parentElement) {
      const cut = ["auto", "scroll", "hidden"].includes(getComputedStyle(up).overflowX);
      if (cut && up !== document.body) return true;
    }
    return false;
  };
  return [...document.body.querySelectorAll("*")]
    .filter((node) => node.getBoundingClientRect().right > root.clientWidth + 1 && !inside(node))
    .slice(0, 5)
    .map((node) => [node, Math.round(node.getBoundingClientRect().right)])
    .map(([node, right]) => `${node.tagName}.${node.className} reaches ${right}`)
    .concat([`the page is ${root.scrollWidth} wide`]);
}"""
VISIBLE = "table => [...table.tBodies[0].rows].filter(row => !row.hidden && row.offsetParent).length"
ORDER = "table => [...table.tBodies[0].rows].map(row => row.textContent)"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Path of the page of each kind, made when it is asked for."""
    made = {}

    def page(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = folder / f"{kind}.html"
            made[kind].write_text(SAMPLES[kind](folder), encoding="utf-8")
        return made[kind]

    return page


@pytest.fixture
def opened(browser, pages):
    """A function: the page of a kind in a window of some width."""
    windows = []

    def open_(kind, width=1280):
        windows.append(Opened(browser, pages(kind), width))
        return windows[-1]

    yield open_
    for window in windows:
        window.page.close()


def test_no_kind_of_page_is_left_out():
    assert set(SAMPLES) == {"index", *(kind.stem for kind in KINDS)}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", SAMPLES)
def test_page_renders_without_a_complaint(kind, width, opened):
    window = opened(kind, WIDTHS[width])
    assert window.complaints() == []
    assert window.page.locator("h1").inner_text().strip()
    assert window.page.title().count("qvit-hw") == 1
    box = window.page.locator("main").bounding_box()
    assert box["height"] > 400
    assert window.requests[0].startswith("file:")


@pytest.mark.parametrize("kind", SAMPLES)
def test_the_theme_is_switched_and_both_are_drawn(kind, opened):
    window = opened(kind)
    colour = "() => getComputedStyle(document.body).backgroundColor"
    before = window.ask(colour)
    window.page.click("#theme")
    after = window.ask(colour)
    window.page.click("#theme")
    assert before != after
    assert window.ask(colour) == before


@pytest.mark.parametrize("kind", [kind for kind in SAMPLES if kind not in ("index",)])
def test_tables_are_sorted_by_their_buttons(kind, opened):
    window = opened(kind)
    tables = window.page.query_selector_all("table.sortable")
    assert tables or kind == "cost"
    for table in tables:
        for head in table.query_selector_all("thead th:has(button)"):
            if not head.is_visible():
                continue
            orders = []
            for direction in ("ascending", "descending"):
                head.eval_on_selector("button", "button => button.click()")
                assert head.get_attribute("aria-sort") == direction
                orders.append(table.evaluate(ORDER))
            assert sorted(orders[0]) == sorted(orders[1])
            if len(set(orders[0])) > 1 and head.evaluate(VALUES) > 1:
                assert orders[0] != orders[1]
    assert window.errors == []


VALUES = """head => {
  const column = [...head.parentElement.children].indexOf(head);
  const rows = [...head.closest("table").tBodies[0].rows];
  return new Set(rows.map(row => row.children[column]?.dataset.v ?? row.children[column]?.textContent)).size;
}"""


@pytest.mark.parametrize("kind", ["report", "proofs", "mutation", "coverage"])
def test_filters_hide_rows(kind, opened):
    window = opened(kind)
    filters = window.page.query_selector_all(".filters[data-for]")
    assert filters
    for group in filters:
        table = window.page.query_selector(f'table[data-kind="{group.get_attribute("data-for")}"]')
        count = table.evaluate(VISIBLE)
        assert count > 0
        hidden = 0
        for box in group.query_selector_all("input[type=checkbox]"):
            box.click()
            hidden += count - table.evaluate(VISIBLE)
            box.click()
            assert table.evaluate(VISIBLE) == count
        assert hidden == count, "each row belongs to one of the boxes"
        search = group.query_selector("input[type=search]")
        search.fill("no row has this name")
        assert table.evaluate(VISIBLE) == 0
        search.fill("")
        assert table.evaluate(VISIBLE) == count
    assert window.errors == []


def test_the_plots_of_the_evaluation_answer(opened):
    window = opened("evaluation")
    plot = window.page.query_selector("[data-plot]")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    readout = "plot => plot.nextElementSibling.textContent"
    before = plot.evaluate(readout)
    point = plot.query_selector("[data-t]").bounding_box()
    window.page.mouse.move(point["x"] + 1, point["y"] + 1)
    assert box["width"] > 300
    assert plot.evaluate(readout) != before
    assert window.errors == []


def test_the_trade_off_answers(opened):
    """Filters take points away, a touch on one tells its commands, and the plot is drawn."""
    window = opened("tradeoff")
    page, errors = window.page, window.errors
    page.wait_for_selector("#plot .main-svg")
    shown = page.locator("#shown").inner_text()
    page.locator("#controls input[data-filter], #controls fieldset input").first.click()
    assert page.locator("#shown").inner_text() != shown
    page.locator("#controls fieldset input").first.click()
    page.locator("#controls select[name=y]").select_option("lut")
    page.locator("#points tbody tr").first.click()
    assert "qvit-hw calibrate" in page.locator("#detail").inner_text()
    assert errors == []


def test_the_index_leads_to_its_pages(browser, tmp_path, pages):
    place = tmp_path / "a folder" / "with #signs"
    place.mkdir(parents=True)
    (place / "proofs.html").write_bytes(pages("proofs").read_bytes())
    (place / "proofs.json").write_text('{"schema": "qvit-hw/proofs", "passed": true}')
    assert run(folder=tmp_path) == 0
    window = Opened(browser, tmp_path / "index.html", 390)
    assert window.complaints() == []
    assert window.page.locator(".page.missing").count() == 6
    window.page.click("a.page")
    assert "properties proven" in window.page.locator("h1").inner_text()
    window.page.close()


def test_a_page_with_faults_is_found(browser, tmp_path):
    """The negative twin: an error, a request, something too wide."""
    path = tmp_path / "bad.html"
    path.write_text(
        "<!doctype html><title>x</title><body><p style='width: 900px'>wide</p>"
        "<img src='http://127.0.0.1:9/x.png'><script>console.error('told'); null.x</script>"
    )
    window = Opened(browser, path, 390)
    found = " ".join(window.complaints())
    for part in ("told", "null", "127.0.0.1:9", "P. reaches"):
        assert part in found
    window.page.close()
