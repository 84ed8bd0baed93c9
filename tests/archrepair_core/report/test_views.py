"""The views of a report: every number is the report's, nothing of a name gets out of its place."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from archrepair_core.report.gallery import thumbnail
from archrepair_core.report.html import render_html
from archrepair_core.report.junit import render_junit
from archrepair_core.report.markdown import MAX_BYTES, render_markdown
from archrepair_core.report.numbers import escaped, value_at
from archrepair_core.report.policy import PAGE_POLICY, SERVED_POLICY
from archrepair_core.report.schema import SCHEMA_VERSION, AnyReport, json_schema
from tests.archrepair_core.report.reports import HOSTILE, make_evaluation, make_report

VOID = {"meta", "link", "img", "br", "input"}
DIGITS = re.compile(r"\d")
NUMBER = re.compile(r"^([+−-]?)([\d,]+(?:\.(\d+))?(?:e([+-]\d+))?)")
# Numbers of the page that are no results.
FIXED_WORDS = ("95 % intervals", "95 % interval")


class Page(HTMLParser):
    """Every element's attributes, and every text with the elements around it."""

    def __init__(self, content):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(content)
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag, attrs):
        element = (tag, dict(attrs))
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.texts.append((data, list(self.open)))


def tagged(page):
    """(pointer, minus, exact value or None, text) of whatever says where it comes from."""
    shown = {}
    for text, around in page.texts:
        for place, (_, attributes) in enumerate(around):
            if "data-path" in attributes:
                pointer, _, minus = attributes["data-path"].partition("-/")
                minus = attributes.get("data-minus") or (f"/{minus}" if minus else None)
                key = (id(around[place][1]), pointer, minus, attributes.get("value"))
                shown[key] = shown.get(key, "") + text
    return [(pointer, minus, value, text.strip()) for (_, pointer, minus, value), text in shown.items()]


def agrees(text, value):
    """Whether the text is the value, to the digits it shows."""
    match = NUMBER.match(text)
    if value is None or match is None:
        return value is None and text == "–"
    number = float(match[2].replace(",", "")) * (-1 if match[1] in ("−", "-") else 1)
    step = 10.0 ** (int(match[4] or 0) - len(match[3] or ""))
    return any(abs(number - value * scale) <= 0.5001 * step for scale in ((100,) if "%" in text else (1, 100)))


REPORTS = {
    "2 classes": lambda: make_report(2),
    "100 classes, nothing beyond the test set": lambda: make_report(100, measured=False),
    "evaluation": lambda: make_evaluation(compared=False),
    "evaluation without gates": lambda: make_evaluation(2, compared=False, gates=False),
    "comparison": lambda: make_evaluation(100, compared=True),
}


@pytest.fixture(scope="module", params=REPORTS)
def report(request):
    return json.loads(json.dumps(REPORTS[request.param]()))


@pytest.fixture(scope="module")
def page(report):
    return Page(render_html(report, {}))


def test_every_value_in_the_page_is_that_of_the_report(report, page):
    found = tagged(page)
    assert len(found) > 150
    for pointer, minus, exact, text in found:
        value = value_at(report, pointer)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value -= value_at(report, minus) if minus else 0
            assert exact is None or float(exact) == value, pointer
            assert agrees(text, value), (pointer, text, value)
        elif isinstance(value, list):
            assert text == " × ".join(map(str, value))
        else:
            assert text == ("–" if value in (None, "") else value.strip()), pointer


def test_no_number_of_the_page_comes_from_elsewhere(report, page):
    names = {f"class {row['label']}" for row in report["test"]["per_class"]}
    names |= {f"class {label}" for split in report["data"]["splits"].values() for label in split.get("classes", {})}
    confusions = report["test"].get("confusion_change") or report["test"].get("confusions")
    names |= {f"{row['label']} taken for {row['predicted']}" for row in confusions}
    for text, around in page.texts:
        attributes = [attributes for _, attributes in around]
        marked = any("data-path" in each or "data-code" in each for each in attributes)
        ticks = any(each.get("class") == "tick" for each in attributes)
        if marked or ticks or {"style", "script", "desc", "title"} & {tag for tag, _ in around}:
            continue
        sized = next((each["data-size"] for each in attributes if "data-size" in each), None)
        if sized:
            assert int(text) == len(value_at(report, sized))
        elif DIGITS.search(text):
            words = text
            for known in sorted((*FIXED_WORDS, *names), key=len, reverse=True):  # class 11 before class 1
                words = words.replace(known, "")
            in_figure = any(tag == "svg" for tag, _ in around)
            assert not DIGITS.search(words) or (in_figure and _is_a_name(words, report)), text


def _is_a_name(words, report):
    known = json.dumps(report, ensure_ascii=False)
    return words.strip().strip("…") in known or words.strip() in ("input", "output")


def test_all_classes_are_in_the_table_and_what_got_worse_first(report, page):
    shown = [pointer for pointer, *_ in tagged(page) if re.fullmatch(r"/test/per_class/\d+/label", pointer)]
    places = [int(pointer.split("/")[3]) for pointer in shown]
    assert sorted(places) == list(range(len(report["test"]["per_class"])))
    changes = [report["test"]["per_class"][place] for place in places]
    changes = [row["after"] - row.get("before", 0) for row in changes]
    assert changes == sorted(changes)


def test_figures_say_what_they_are_and_share_no_id(page):
    figures = [attributes for tag, attributes in page.elements if tag == "svg"]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(figures) >= 5
    assert len(ids) == len(set(ids))
    for attributes in figures:
        assert attributes["role"] == "img"
        assert set(attributes["aria-labelledby"].split()) <= set(ids)
    assert all(attributes.get("alt") for tag, attributes in page.elements if tag == "img")


def test_the_page_loads_nothing_and_styles_nothing_inline(page):
    for _, attributes in page.elements:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    policies = [attributes["content"] for _, attributes in page.elements if "http-equiv" in attributes]
    assert policies == [PAGE_POLICY]
    for policy in (PAGE_POLICY, SERVED_POLICY):
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy


@pytest.mark.slow
def test_names_never_leave_their_place():
    report = make_report(3, name=HOSTILE)
    page = Page(render_html(report, {}))
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert "<script>alert" not in render_html(report, {})
    assert any("<script>alert(1)</script>" in text for text, _ in page.texts), "it is shown, as text"
    text = render_markdown(report)
    assert "<script" not in text
    assert "](http" not in text
    assert "@all" not in text.replace("\\@all", "")
    assert len({line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")}) <= 5
    ElementTree.fromstring(render_junit(report))


@pytest.mark.slow
def test_sizes_stay_within_what_they_are_made_for():
    report = make_report(100, num_inputs=3000)
    random = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    pictures = {f"{group}/{place}": thumbnail(random) for group in report["examples"] for place in range(12)}
    assert len(render_html(report, pictures).encode()) < 2_500_000, "noise is the largest a picture gets"
    assert len(render_html(report, {}).encode()) < 700_000
    report["gates"] *= 100
    report["limits"] = ["x" * 5000] * 10
    assert len(render_markdown(report).encode()) < MAX_BYTES


def cells_of(text):
    """First cell of every row of the tables to its other cells."""
    rows = (line.split("|") for line in text.splitlines() if line.startswith("|"))
    return {row[1].strip(): [cell.strip() for cell in row[2:]] for row in rows}


def test_markdown_of_one_model_shows_no_changes():
    report = make_evaluation(3, compared=False, name="fog", gates=False)
    text = render_markdown(report)
    assert text.startswith("## ➖ Evaluation\n")
    assert not [word for word in ("before", "broken", "Gates", "changed") if word in text]
    cells = cells_of(text)
    assert agrees(cells["test"][1], report["test"]["accuracy"]["after"])
    assert agrees(cells["mean"][0], report["corruptions"]["accuracy"]["after"])
    assert agrees(cells["fog1"][0], report["corruptions"]["kinds"][1]["mean"]["after"])
    by_value = {row["value"]: row for row in report["slices"][0]["slices"]}
    assert agrees(cells["dusk"][1], by_value["dusk"]["after"])
    assert agrees(cells["–"][1], by_value[None]["after"])


@pytest.mark.parametrize("make", [lambda: make_report(100), lambda: make_evaluation(2, compared=True)])
def test_markdown_shows_the_numbers_of_the_report(make):
    report = make()
    text = render_markdown(report)
    cells = cells_of(text)
    accuracy = next(cells[name] for name in cells if name.startswith("test accuracy"))
    test = report["test"]
    for shown, value in zip(accuracy[:3], ("before", "after", "change"), strict=True):
        assert agrees(shown, test["accuracy"][value])
    assert agrees(cells["test: exact McNemar p"][1], test["mcnemar_p"])
    assert agrees(cells["latency, after / before"][1], report["cost"]["latency_ratio"])
    for name, key in (("test: fixed, of what failed", "fixed"), ("test: broken, of all", "broken")):
        assert agrees(cells[name][1].partition(" (")[0], test[key])
    worst = sorted(test["per_class"], key=lambda row: row["after"] - row["before"])[:10]
    for row in worst:
        n, before, after, change, fixed, broken, p, _ = cells[str(row["label"])]
        pairs = ((n, row["n"]), (before, row["before"]), (after, row["after"]), (change, row["after"] - row["before"]),
                 (fixed, row["fixed"]), (broken, row["broken"]), (p, row["p_holm"]))  # fmt: skip
        assert all(agrees(shown, value) for shown, value in pairs), row


def test_each_gate_is_a_testcase_with_its_reason():
    report = make_report(name="because")
    (suite,) = ElementTree.fromstring(render_junit(report))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "2", "1")
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [gate["expression"] for gate in report["gates"]]
    assert [case[0].tag for case in cases] == ["system-out", "failure", "failure", "skipped"]
    assert [case[0].get("type") for case in cases[1:3]] == ["fail", "inconclusive"]
    assert cases[1][0].get("message") == "because"
    properties = {item.get("name"): item.get("value") for item in suite.find("properties")}
    assert float(properties["test.accuracy.after"]) == report["test"]["accuracy"]["after"]
    assert properties["data.splits.test.digest"] == "ab" * 32


def test_the_published_schema_is_the_one_of_the_code():
    published = json.loads((Path(__file__).parents[3] / "docs" / "report.schema.json").read_text("utf-8"))
    assert published == json_schema(), "python -m archrepair_core.report.schema > docs/report.schema.json"
    assert published["$id"].endswith(SCHEMA_VERSION)


def test_the_reports_of_these_tests_are_as_the_schema_says(report):
    assert AnyReport.validate_python(report).model_dump(mode="json", by_alias=True, exclude_unset=True) == report


@pytest.mark.parametrize("key", ["a/b", "a~b", "~1", "layer1.0"])
def test_a_pointer_finds_any_key(key):
    assert value_at({"x": [{key: 3}]}, f"/x/0/{escaped(key)}") == 3
    assert value_at({"x": [{key: 3}]}, f"/x/1/{escaped(key)}") is None


@pytest.mark.parametrize("shape", [(300, 200, 3), (32, 32, 1), (8, 8, 4)])
def test_a_thumbnail_is_a_small_png(shape):
    for image in (np.zeros(shape, np.uint8), np.full(shape, 0.5, np.float32), np.full(shape, -7.0, np.float32)):
        picture = Image.open(io.BytesIO(thumbnail(image)))
        assert picture.format == "PNG"
        assert max(picture.size) <= 96
