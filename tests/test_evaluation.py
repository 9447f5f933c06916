# SPDX-License-Identifier: Apache-2.0
"""The numbers of an evaluation, its page and its charts."""

import json
import math
import re
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import pytest
from evaluation_samples import pictures, sample

from qvit_hw.errors import UserError
from qvit_hw.evaluation import Difference, Share, decibel, document
from qvit_hw.evaluation_page import JSON, PAGE, percent, render, write_page
from qvit_hw.report_page.charts import Band, Point, depth_chart, disagreement_chart
from qvit_hw.report_page.pictures import thumbnail

# --------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (15, 148, 0.0624, 0.1605),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_s_interval_is_the_published_one(count, total, low, high):
    share = Share.of(count, total)
    assert (share.count, share.total, share.share) == (count, total, count / total)
    assert share.low == pytest.approx(low, abs=6e-5)
    assert share.high == pytest.approx(high, abs=6e-5)


def test_wilson_s_ends_solve_its_equation():
    """(share - p)^2 = z^2 p (1 - p) / n at both ends."""
    for count, total in ((3, 7), (200, 359), (358, 359)):
        share = Share.of(count, total)
        for p in (share.low, share.high):
            assert (share.share - p) ** 2 == pytest.approx(
                1.959963984540054**2 * p * (1 - p) / total
            )


@pytest.mark.parametrize(("count", "total"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_shares_are_refused(count, total):
    with pytest.raises(
        ValueError, match=rf"^Count must be from 0 to the total {total} > 0, not {count}$"
    ):
        Share.of(count, total)


@pytest.mark.parametrize(
    ("won", "lost", "p"),
    [(0, 0, 1), (1, 0, 1), (0, 5, Fraction(2, 32)), (3, 9, Fraction(2 * 299, 4096)), (7, 7, 1)],
)
def test_the_sign_test_is_exact(won, lost, p):
    assert Difference.of("golden", "float", won, lost, 100).p == pytest.approx(float(p))


def test_the_sign_test_takes_many_images():
    assert 0 < Difference.of("golden", "float", 400, 500, 50_000).p < 0.001


def test_a_difference_is_paired():
    """Bonett & Price's interval by hand for 2 won and 5 lost of 98."""
    found = Difference.of("golden", "float", 2, 5, 98)
    assert found.difference == -3 / 98
    middle, half = -0.03, 1.959963984540054 * math.sqrt((0.09 - 0.0009) / 100)
    assert found.low == pytest.approx(middle - half)
    assert found.high == pytest.approx(middle + half)


@pytest.mark.parametrize(("won", "lost", "total"), [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_impossible_differences_are_refused(won, lost, total):
    with pytest.raises(ValueError, match=r"^Won and lost must fit into \d+, not -?\d and \d$"):
        Difference.of("golden", "float", won, lost, total)


def test_decibels():
    assert decibel(100, 1) == pytest.approx(20)
    assert decibel(1, 0) is None
    assert decibel(0, 1) is None


# ------------------------------------------------------------------------------------------ verdict


def test_equal_codes_hold():
    assert sample().holds
    assert sample().apart == ()


def test_codes_below_the_bar_do_not_hold_and_are_named_worst_first():
    found = sample(differing=400)
    assert not found.holds
    shares = [min(tensor.agreement, tensor.operator_agreement) for tensor in found.apart]
    assert shares == sorted(shares)
    assert all(share < 0.999 for share in shares)


def test_an_operator_below_the_bar_is_enough():
    found = sample()
    wrong = replace(found.tensors[3], operator=1001)
    assert not replace(found, tensors=(wrong,)).holds
    right = replace(found.tensors[3], operator=1000)
    assert replace(found, tensors=(right,)).holds


# --------------------------------------------------------------------------------------------- page


class Page(HTMLParser):
    """Text of a page, what it would load, and whether every element is closed."""

    VOID = ("meta", "img", "input", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_page_tells_accuracy_against_float():
    page = Page(render(sample(), pictures()))
    assert "97.21 % top-1 in integers, 97.49 % in float" in page.text
    assert "−0.28 points against float (95 %:" in page.text
    assert "of 359 images, 1 is right in integers alone, 2 in float alone" in page.text
    assert "All 28,000,000 codes compared are those of the calibrated model" in page.text
    assert "16.4 ms" in page.text
    assert "190 MiB (31 MiB)" in page.text


def test_the_page_of_features_tells_decibels_and_no_accuracy():
    page = Page(render(sample(labelled=False), pictures(3, 300)))
    assert "19.2 dB the features in integers against float" in page.text
    assert "top-1" not in page.text
    assert "Model 'sample' has no classifier." in page.text


def test_the_page_of_a_classifier_without_labels_tells_decibels_of_outputs():
    found, labelled = sample(labelled=False), sample()
    page = Page(render(replace(found, agreements=labelled.agreements), pictures()))
    assert "19.2 dB the outputs in integers against float" in page.text
    assert "same first guess as float – 99.16 %" in page.text


def test_the_page_says_what_is_apart():
    text = render(sample(blocks=4, differing=300), pictures())
    page = Page(text)
    assert 'class="verdict fail"' in text
    assert re.search(
        r"\d tensors have fewer than 99.9 % codes in common with the calibrated", page.text
    )
    assert "are ties: before rounding within 1/1000" in page.text
    assert 'aria-label="Share of differing codes of every tensor"' in text


def test_the_page_without_differences_has_no_chart_of_them():
    text = render(sample(), pictures())
    assert 'class="verdict pass"' in text
    assert "Share of differing codes" not in text


def test_the_page_needs_nothing_from_elsewhere():
    text = render(sample(differing=10), pictures())
    assert all(source.startswith("data:") for source in Page(text).loaded)
    assert "http" not in text.replace("http-equiv", "")
    assert "@import" not in text


def test_the_page_shows_every_tensor_group_and_example():
    found = sample(blocks=3)
    text = render(found, pictures())
    for tensor in found.tensors:
        assert f'data-name="{tensor.name}"' in text
    for cost in found.sensitivity.groups:
        assert f'<th scope="row">{cost.name}</th>' in text
    assert text.count('<figure class="example">') == len(found.examples)


def test_what_was_not_measured_is_not_on_the_page():
    text = render(sample(tried=False, timed=False), pictures())
    assert "Where error enters" not in text
    assert "peak memory" not in text


def test_names_cannot_inject_markup():
    found = sample()
    found = replace(
        found,
        model={"name": "<b>model</b>", "source": "<script>alert(1)</script>"},
        data="<i>data</i>",
        classes=tuple("<u>class</u>" for _ in range(10)),
        tensors=(replace(found.tensors[0], name='"><script>alert(2)</script>'),),
    )
    text = render(found, pictures())
    assert not re.search(r"<script>alert|<b>model|<i>data|<u>class", text)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1, "100 %"),
        (0.5, "50.00 %"),
        (0.99996, "99.996 %"),
        (1 - 1e-12, "99.999999 %"),
        (0, "0.00 %"),
    ],
)
def test_only_what_is_one_reads_hundred_percent(share, text):
    assert percent(share).replace("\u2009", " ") == text


@pytest.mark.parametrize(("side", "kind"), [(8, "png"), (300, "jpeg")])
@pytest.mark.parametrize("channels", [1, 3])
def test_thumbnails(channels, side, kind):
    pixels = pictures(channels, side, 1).images([0])[0]
    assert thumbnail(pixels).startswith(f"data:image/{kind};base64,")


# -------------------------------------------------------------------------------------------- files


def test_page_and_json_are_written(tmp_path):
    found = sample()
    write_page(found, tmp_path / "deep" / "out", pictures())
    assert sorted(path.name for path in (tmp_path / "deep" / "out").iterdir()) == [PAGE, JSON]
    told = json.loads((tmp_path / "deep" / "out" / JSON).read_text())
    assert told["schema"] == "qvit-hw/evaluation"
    assert told["holds"] is True
    assert told["accuracies"][2]["top1"]["count"] == 349
    assert told["tensors"][0]["agreement"] == 1
    assert told == json.loads(json.dumps(document(found)))


def test_an_older_evaluation_is_replaced_and_nothing_else(tmp_path):
    write_page(replace(sample(), images=12), tmp_path / "out", pictures())
    write_page(replace(sample(), images=13), tmp_path / "out", pictures())
    assert json.loads((tmp_path / "out" / JSON).read_text())["images"] == 13
    (tmp_path / "out" / JSON).unlink()
    sentence = r"^Output '.*out' holds other files and no evaluation: it is left alone\.$"
    with pytest.raises(UserError, match=sentence):
        write_page(sample(), tmp_path / "out", pictures())
    assert [path.name for path in (tmp_path / "out").iterdir()] == [PAGE]


def test_a_folder_that_cannot_be_is_refused_and_nothing_is_left(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^Output '.*out' cannot be made: '.*file' is not a folder\.$"):
        write_page(sample(), tmp_path / "file" / "out", pictures())
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_fault_in_mid_writing_leaves_nothing(tmp_path, monkeypatch):
    written = Path.write_text

    def fail(self, *arguments, **options):
        if self.name == JSON:
            raise OSError(28, "No space left on device")
        return written(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(UserError, match="No space left"):
        write_page(sample(), tmp_path / "out", pictures())
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------- charts


def places(svg: str, kind: str = "pt") -> list[tuple[float, float]]:
    found = re.findall(rf'class="{kind} s\d" cx="([\d.]+)" cy="([\d.]+)"', svg)
    return [(float(x), float(y)) for x, y in found]


def test_a_chart_draws_more_decibels_higher_and_later_tensors_further_right():
    points = [Point(0, 30.0, 0, "a"), Point(1, 10.0, 0, "b"), Point(2, 20.0, 0, "c")]
    first, second, third = places(depth_chart(points, [Band("in", 0, 2)]))
    assert first[0] < second[0] < third[0]
    assert second[1] > third[1] > first[1]
    assert third[1] == pytest.approx((first[1] + second[1]) / 2, abs=0.11)


def test_an_exact_tensor_is_not_drawn_and_breaks_its_line():
    values = [30.0, 25.0, None, 20.0, 22.0]
    svg = depth_chart([Point(i, v, 0, "") for i, v in enumerate(values)], [Band("0", 0, 4)])
    assert len(places(svg)) == 4
    assert svg.count("<polyline") == 2


def test_a_chart_without_anything_is_a_chart():
    assert depth_chart([Point(0, None, 0, "")], [Band("in", 0, 0)]).startswith("<svg")


def test_negative_decibels_have_a_scale():
    svg = depth_chart([Point(0, -12.0, 0, ""), Point(1, 5.0, 0, "")], [])
    assert "−20" in svg
    assert "10 dB" in svg


def test_disagreement_is_drawn_on_a_logarithm():
    shares = [1.0, 1e-2, 1e-4, 0.0]
    points = [Point(i, v, 0, "") for i, v in enumerate(shares)]
    svg = disagreement_chart(points, points, [Band("in", 0, 3)], 1e-3)
    whole, cent, bip, none = (y for _, y in places(svg))
    assert cent - whole == pytest.approx(bip - cent, abs=0.11)
    assert none > bip
    assert len(places(svg, "ring")) == 3
    (bar,) = re.findall(r'class="limit" [^>]*y1="([\d.]+)"', svg)
    assert cent < float(bar) < bip


def test_labels_of_narrow_parts_give_way():
    bands = [Band(str(n), n, n) for n in range(200)]
    svg = depth_chart([Point(n, 10.0, 0, "") for n in range(200)], bands)
    assert 20 < svg.count('class="part"') < 100
