"""The pages in a real browser: nothing asked of the network, no error, the drawing works by mouse and by key."""

import os
import shutil

import pytest
import torch
from torch import nn

from puredrop.explanation.analysis import Subject, analyse
from puredrop.report.page import render_template

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None and not os.environ.get("CI"):
    pytest.skip("no Chromium on this machine; .ci/run installs it", allow_module_level=True)

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.integration
WIDTHS = {"wide": 1100, "phone": 390}


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    torch.manual_seed(0)
    x = torch.randn(90, 6)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    net = nn.Sequential(
        nn.Linear(6, 24), nn.ReLU(), nn.Dropout(0.5), nn.Linear(24, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(16, 3),
    )  # fmt: skip
    with torch.no_grad():
        net.train()(x)
    found = analyse(Subject("a net", net.eval(), x, y, "classification", members=16))
    seen = dict.fromkeys(("puredrop", "torch", "python", "machine", "created"), "0")
    path = tmp_path_factory.mktemp("page") / "explain.html"
    path.write_text(
        render_template(
            "explanation.html.j2",
            ("puredrop.explanation",),
            name="a net",
            facts=["90 rows"],
            explanation=found,
            command="it",
            environment=seen,
        )
    )
    return path


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser, page_file):
    """A function that opens the page, and what the browser complained of or asked for."""
    contexts = []

    def open_page(width=1100, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page, noted = context.new_page(), []
        page.on("console", lambda message: noted.append(message.text))
        page.on("pageerror", lambda error: noted.append(str(error)))
        page.on("request", lambda request: noted.append(request.url) if "explain.html" not in request.url else None)
        page.goto(page_file.as_uri())
        page.wait_for_selector(".figure .main-svg")
        return page, noted

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_no_complaint_no_request_and_nothing_wider_than_the_window(opened, width, scheme):
    page, noted = opened(width, scheme)
    page.wait_for_timeout(300)
    assert noted == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    drawn = page.evaluate(
        "[...document.querySelectorAll('.figure')].map(one => one.querySelectorAll('.trace, .bars').length)"
    )
    assert len(drawn) > 5
    assert min(drawn) > 0


def test_every_figure_is_drawn_with_titles_on_both_axes(opened):
    page, _ = opened()
    count = page.locator(".figure").count()
    for i in range(count):
        figure = page.locator(".figure").nth(i)
        assert figure.locator(".xtitle").text_content().strip(), i
        assert figure.locator(".ytitle").text_content().strip(), i
        assert len(figure.get_attribute("aria-label")) > 30
        box, title = figure.bounding_box(), figure.locator(".ytitle").bounding_box()
        assert title["y"] >= box["y"] - 1, "the title is cut off"
        assert title["y"] + title["height"] <= box["y"] + box["height"] + 1, "the title is cut off"


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_labels_of_the_drawing_stand_clear_of_each_other(opened, width):
    page, _ = opened(width)
    boxes = page.eval_on_selector_all(
        ".network text",
        "all => all.map(one => one.getBoundingClientRect()).map(b => [b.left, b.right, b.top, b.bottom])",
    )
    assert len(boxes) == 8
    slack = 0.2 * min(bottom - top for _, _, top, bottom in boxes)  # a line's box is taller than its letters
    for i, (left, right, top, bottom) in enumerate(boxes):
        for other in boxes[i + 1 :]:
            is_beside = other[0] >= right or other[1] <= left
            assert is_beside or other[2] >= bottom - slack or other[3] <= top + slack, i
    button = page.get_by_role("button", name="Draw another sub-network").bounding_box()
    assert max(box[3] for box in boxes) <= button["y"]


def test_the_button_draws_another_sub_network(opened):
    page, noted = opened()
    status = page.locator("#network-says")
    assert "every unit at work" in status.inner_text()
    assert page.locator(".unit.off").count() == page.locator(".edge.off").count() == 0
    button = page.get_by_role("button", name="Draw another sub-network")
    seen = set()
    for number in range(1, 5):
        button.click()
        assert f"Sub-network {number} of 24" in status.inner_text()
        off = page.eval_on_selector_all(".unit.off", "all => all.map(one => one.dataset.unit)")
        assert off
        hidden = page.eval_on_selector_all(".edge.off", "all => all.map(one => [one.dataset.from, one.dataset.to])")
        every = page.eval_on_selector_all(".edge", "all => all.map(one => [one.dataset.from, one.dataset.to])")
        assert sorted(hidden) == sorted(edge for edge in every if edge[0] in off or edge[1] in off)
        assert {name.split(".")[0] for name in off} <= {"1", "2"}  # inputs and outputs are not dropped
        seen.add(tuple(off))
    assert len(seen) > 1
    page.get_by_role("button", name="All units (eval mode)").click()
    assert page.locator(".unit.off").count() == 0
    assert noted == []


def test_the_keyboard_reaches_the_button_and_what_is_folded(opened):
    page, _ = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Draw another sub-network"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert "Sub-network 1 of 24" in page.locator("#network-says").inner_text()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.keyboard.press("Enter")
    assert page.locator("#network details").get_attribute("open") is not None


CONTRAST = """
() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const line = (v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * line(r) + 0.7152 * line(g) + 0.0722 * line(b);
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = rgb(getComputedStyle(at).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
  };
  const found = [];
  for (const one of document.querySelectorAll("p, h1, h2, summary, button, strong, span, code, footer")) {
    if (!one.innerText || one.closest(".figure")) continue;
    const [a, b] = [light(rgb(getComputedStyle(one).color)), light(behind(one))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), one.innerText.slice(0, 40)]);
  }
  return found;
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(opened, scheme):
    page, _ = opened(scheme=scheme)
    found = page.evaluate(CONTRAST)
    assert len(found) > 30
    assert [one for one in found if one[0] < 4.5] == []


def test_colours_follow_the_scheme(opened):
    page, _ = opened()
    light = page.evaluate("document.querySelector('.figure').data[0].marker.color")
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(300)
    assert page.evaluate("document.querySelector('.figure').data[0].marker.color") != light


def test_print_has_the_pictures_and_not_the_buttons(opened):
    page, _ = opened()
    page.emulate_media(media="print")
    assert page.locator("button:visible").count() == 0
    assert page.locator(".network svg").is_visible()
