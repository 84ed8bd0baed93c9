"""The page as a browser shows it: nothing beside the screen, nothing on the console, and soon."""

import http.server
import threading
from functools import partial

import pytest

from archrepair_core.report.html import render_html
from archrepair_core.report.policy import SERVED_POLICY
from tests.archrepair_core.report.browser import CHROMIUM, DRIVER, running_browser
from tests.archrepair_core.report.reports import HOSTILE, make_evaluation, make_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"),
]
PAGES = {
    "two classes": lambda: make_report(2),
    "hundred classes": lambda: make_report(100, num_inputs=2000),
    "evaluation": lambda: make_evaluation(compared=False, num_kinds=15),
    "comparison": lambda: make_evaluation(100, compared=True, num_kinds=15),
    "hostile": lambda: make_report(10, name=HOSTILE),
}


class Served(http.server.SimpleHTTPRequestHandler):
    """Files with the headers of the gateway."""

    def end_headers(self):
        self.send_header("Content-Security-Policy", SERVED_POLICY)
        super().end_headers()

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pages")
    for name, make in PAGES.items():
        (directory / f"{name.replace(' ', '-')}.html").write_text(render_html(make(), {}), encoding="utf-8")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Served, directory=directory)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield directory, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def evaluate(call, script):
    return call("POST", "/execute/sync", script=f"return {script}", args=[])


@pytest.mark.parametrize("dark", [False, True])
def test_pages_fit_the_screen_and_say_nothing_on_the_console(pages, tmp_path, dark):
    directory, base = pages
    with running_browser(tmp_path / "profile", dark=dark) as call:
        for name in PAGES:
            file = f"{name.replace(' ', '-')}.html"
            for address in (f"{base}/{file}", (directory / file).as_uri()):
                for width in (1280, 390):
                    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
                    call("POST", "/goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=size)
                    call("POST", "/url", url=address)
                    assert evaluate(call, "document.documentElement.scrollWidth") <= width, (name, width)
                    timing = "performance.getEntriesByType('navigation')[0].loadEventEnd"
                    assert evaluate(call, timing) < 2000, "milliseconds"
                    assert evaluate(call, "document.querySelectorAll('th button').length") > 10, "the script ran"
                    assert evaluate(call, "matchMedia('(prefers-color-scheme: dark)').matches") == dark
                    paper = evaluate(call, "getComputedStyle(document.body).backgroundColor")
                    assert paper == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")
        assert call("POST", "/se/log", type="browser") == []


def test_the_class_table_sorts_and_filters(pages, tmp_path):
    _, base = pages
    with running_browser(tmp_path / "profile") as call:
        call("POST", "/url", url=f"{base}/hundred-classes.html")
        rows = "[...document.querySelector('table.sortable').tBodies[0].rows]"
        first = f"Number({rows}[0].querySelector('data').value)"
        evaluate(call, "document.querySelector('table.sortable th button').click()")
        assert evaluate(call, first) == 0
        evaluate(call, "document.querySelector('table.sortable th button').click()")
        assert evaluate(call, first) == 99
        evaluate(call, "(() => { const box = document.querySelector('input'); box.value = 'no such'; "
                       "box.dispatchEvent(new Event('input')); })()")  # fmt: skip
        assert evaluate(call, f"{rows}.filter((row) => !row.hidden).length") == 0
