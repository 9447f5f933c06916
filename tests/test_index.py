# SPDX-License-Identifier: Apache-2.0
"""The index of pages: what it finds, what it says of it, and what it leaves alone."""

import re

import pytest

from qvit_hw import cli
from qvit_hw.errors import UserError
from qvit_hw.index import KINDS, find_pages, render_index, run


def page(folder, stem, heading, told=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.html").write_text(f"<html><title>x · qvit-hw</title>{heading}</html>")
    if told is not None:
        (folder / f"{stem}.json").write_text(told)


@pytest.fixture
def build(tmp_path):
    page(tmp_path / "demo", "report", "<h1>\n  0 mismatches\n <small>in 9&nbsp;&lt;elements&gt;</small></h1>",
         '{"schema": "qvit-hw/report", "passed": true}')
    page(tmp_path / "proofs", "proofs", "<h1>40 of 41 <small>properties</small></h1>",
         '{"schema": "qvit-hw/proofs", "passed": false}')
    page(tmp_path / "a b" / "#c", "cost", '<h1 class="x">4</h1>',
         '{"schema": "qvit-hw/cost", "passed": "yes"}')
    page(tmp_path, "evaluation", "no heading")
    page(tmp_path / ".hidden", "report", "<h1>hidden</h1>")
    page(tmp_path / "demo", "else", "<h1>of no kind</h1>")
    return tmp_path  # fmt: skip


def test_pages_are_found_at_any_depth_with_number_and_verdict(build):
    found = {page.place: (page.number, page.of, page.passed) for page in find_pages(build)}
    assert found == {
        "demo/report.html": ("0 mismatches", "in 9 <elements>", True),
        "evaluation.html": ("Evaluation", "Accuracy, and where error enters.", None),
        "proofs/proofs.html": ("40 of 41", "properties", False),
        "a b/#c/cost.html": ("4", "Size and frequency of the units.", None),
    }
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", page.date) for page in find_pages(build))


def test_the_index_links_them_and_names_what_is_missing(build):
    assert run(folder=build) == 0
    text = (build / "index.html").read_text()
    assert re.findall(r'href="(.*?)"', text) == [
        *("demo/report.html", "evaluation.html", "proofs/proofs.html", "a%20b/%23c/cost.html")
    ]
    assert "in 9 &lt;elements&gt;" in text
    assert "1 passed, 1 failed, 2 without a verdict, 3 kinds of page not there." in text
    assert 'class="verdict fail"' in text
    for kind in ("coverage", "mutation", "tradeoff"):
        assert next(k.command for k in KINDS if k.stem == kind) in text
    assert not re.search(r"https?://", text)
    assert run(folder=build) == 0  # an index of ours is replaced
    assert [page.place for page in find_pages(build)].count("index.html") == 0


@pytest.mark.parametrize(
    ("verdicts", "told"),
    [((True, None), "pass"), ((None,), ""), ((), ""), ((True, False), "fail")],
)
def test_the_verdict_is_the_worst_of_all(verdicts, told, build):
    from dataclasses import replace

    one = find_pages(build)[0]
    text = render_index([replace(one, passed=passed) for passed in verdicts])
    assert re.search(r'<section class="verdict ?(\w*)"', text)[1] == told


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\xff", b"[]", b'{"passed": NaN}', b"[" * 200_000),
        *(b'{"schema": "qvit-hw/report", "passed": 1}', b'{"passed": true}'),
        *(b'{"schema": "qvit-hw/cost", "passed": true}', b'{"schema": ["qvit-hw/report"], "passed": true}'),
    ],
    ids=["empty", "no text", "list", "NaN", "deep", "number", "no schema", "another's", "no word"],
)
def test_a_json_that_is_none_is_no_verdict(content, build):
    (build / "demo" / "report.json").write_bytes(content)
    assert find_pages(build)[0].passed is None


def test_a_schema_is_the_one_that_is_written():
    """What the index expects beside each page is what the page's command says."""
    from qvit_hw import cost, cover, evaluation, explore, mutate, prove, report

    written = {module.SCHEMA for module in (report, evaluation, prove, cover, mutate, cost, explore)}
    assert {kind.schema for kind in KINDS} == written


def test_what_is_not_ours_is_left_out_and_told(build, capsys):
    (build / "mine").mkdir()
    (build / "mine" / "coverage.html").write_text("<title>Foo</title><h1>Foo</h1> · qvit-hw")
    (build / "mine" / "coverage.json").write_text('{"schema": "qvit-hw/coverage", "passed": true}')
    (build / "mine" / "mutation.html").write_bytes(bytes(range(256)))
    title = "<title>0 mismatches · qvit-hw · digits</title>"  # as a report has it
    (build / "mine" / "report.html").write_text(title)
    assert run(folder=build) == 0
    told = capsys.readouterr().err
    assert told.count("\n") == 2
    assert told.startswith("left out, as no page of ours: 'mine/coverage.html', 'mine/mutation.html'\n")
    text = (build / "index.html").read_text()
    assert "Foo" not in text
    assert [page.place for page in find_pages(build)].count("mine/report.html") == 1
    for place in ("coverage", "mutation"):
        (build / "mine" / f"{place}.html").unlink()
    assert run(folder=build) == 0
    assert "left out" not in capsys.readouterr().err


def test_another_index_and_no_folder_are_refused(build, capsys):
    (build / "index.html").write_text("<title>mine</title>")
    with pytest.raises(UserError, match=r"^Output '.*/index\.html' is another page: it is left alone\.$"):
        run(folder=build)
    assert (build / "index.html").read_text() == "<title>mine</title>"
    assert cli.invoke(["index", "--folder", str(build / "none")]) == 2
    assert "does not exist: make a page first" in capsys.readouterr().err


def test_a_file_and_a_folder_without_a_page_are_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert cli.invoke(["index", "--folder", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err == f"error: Folder '{tmp_path}/file' must be a folder, not a file.\n"
    for content in (None, "<title>Foo</title>"):
        if content is not None:
            (tmp_path / "cost.html").write_text(content)
        assert cli.invoke(["index", "--folder", str(tmp_path)]) == 2
        assert re.fullmatch(r"error: Folder '.*' has no page of ours: .*\.\n", capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cost.html", "file"]


def test_commands_of_missing_pages_exist():
    """Each is a make target or a module of ours."""
    from test_layout import commands, make_targets

    for kind in KINDS:
        words = kind.command.split()
        if words[0] == "make":
            assert words[1] in make_targets()
        elif words[0] == "qvit-hw":
            assert words[1] in commands()
        else:
            assert words[2].removeprefix("qvit_hw.") in commands()
