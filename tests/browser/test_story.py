"""What the dashboard is for, from a dropped file to a compared repair, in a real browser on the whole service."""

import time

import pytest
from selenium.webdriver.common.keys import Keys

from tests.browser.conftest import PHONE, WIDE


def submit(browser, case, *, budget_seconds, method):
    """Drop the files, fill in the form, start; returns the job's id and when it was asked for."""
    browser.open("/ui/new")
    browser.drop("#drop", *(case / name for name in ("model.pt", "repair.npz", "validation.npz", "test.npz")))
    browser.until(lambda: browser.text.count("Ready.") == 4, 120)
    browser.script("arguments[0].value = arguments[1]", browser.find("#f-repair\\.method"), method)
    browser.script("arguments[0].dispatchEvent(new Event('change'))", browser.find("#f-repair\\.method"))
    browser.find("#f-repair\\.budget_seconds").send_keys(str(budget_seconds))
    browser.find("#f-gates").send_keys("test.accuracy > before")
    asked_at = time.monotonic()
    browser.click("#submit")
    browser.until(lambda: browser.path.startswith("/ui/jobs/job_"))
    return browser.path.removeprefix("/ui/jobs/"), asked_at


def test_the_whole_story(open_browser, case):
    browser = open_browser(WIDE)
    browser.sign_in()

    # A job, watched to its end on one page that is never loaded again.
    job_id, asked_at = submit(browser, case, budget_seconds=20, method="archrepair")
    browser.script("window.sameDocument = true")
    browser.until(lambda: "running" in browser.find("p[role=status]").text, 300)
    print(f"seen to run {time.monotonic() - asked_at:.2f} s after the click")
    browser.until(lambda: browser.find("li.now"), 300)
    browser.until(lambda: browser.find("[aria-labelledby=suspicion-h] svg"), 300)
    assert browser.find("#live").get_attribute("data-done") == "false", "the chart is there while the job runs"
    log_before = len(browser.find("#log").text)
    browser.until(lambda: browser.find("[aria-labelledby=losses-h] polyline"), 300)
    percents = set()

    def ended():
        percents.update(bar.get_attribute("value") for bar in browser.driver.find_elements("css selector", "progress"))
        return browser.find("#live").get_attribute("data-done") == "true"

    browser.until(ended, 400)
    assert browser.script("return window.sameDocument") is True
    assert len(percents) >= 3, percents
    assert len(browser.find("#log").text) > log_before
    assert "succeeded" in browser.find("p[role=status]").text
    assert "verdict" in browser.find("p[role=status]").text
    assert browser.serious() == []

    # Its report, in a frame that may run its own script and nothing else.
    browser.driver.find_element("link text", "Report").click()
    frame = browser.find("iframe.report")
    assert "allow-same-origin" not in frame.get_attribute("sandbox")
    browser.driver.switch_to.frame(frame)
    assert "Repair report" in browser.text
    browser.driver.switch_to.default_content()

    # Another one, which is cancelled while it runs.
    other_id, _ = submit(browser, case, budget_seconds=900, method="weights")
    browser.until(lambda: browser.find("li.now"), 300)
    browser.button("Cancel").click()
    browser.driver.switch_to.alert.accept()
    browser.until(lambda: "cancelled" in browser.find("p[role=status]").text, 60)

    # Both side by side, ticked in a list that goes on refreshing itself.
    browser.driver.find_element("link text", "Jobs").click()
    for job in (job_id, other_id):
        browser.until(lambda job=job: browser.find(f"input[value={job}]")).click()
        time.sleep(3.5)
    browser.button("Compare the chosen").click()
    assert [cell.text for cell in browser.driver.find_elements("css selector", "thead a.id")] == [other_id, job_id]
    assert browser.serious() == []
    assert browser.errors() == []


@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_every_page_fits_and_has_no_serious_issue(open_browser, case, width):
    browser = open_browser(width)
    browser.open("/ui/sign-in")
    assert browser.serious() == []
    browser.sign_in()
    pages = ["/ui/jobs", "/ui/jobs?status=failed&verdict=fail", "/ui/new", "/ui/models", "/ui/datasets", "/ui/queue",
             "/ui/compare"]  # fmt: skip
    for link in ("/ui/jobs", "/ui/models"):
        browser.open(link)
        found = browser.driver.find_elements("css selector", "tbody a.id")
        pages += [place.get_attribute("href").removeprefix(browser.url) for place in found[:1]]
    for path in pages:
        browser.open(path)
        assert browser.serious() == [], path
        assert browser.script("return document.documentElement.scrollWidth") <= width, path
        assert browser.errors() == [], path


def test_without_a_mouse(open_browser):
    browser = open_browser()
    browser.open("/ui/jobs")
    browser.driver.switch_to.active_element.send_keys(browser.key, Keys.ENTER)
    browser.until(lambda: browser.path == "/ui/jobs")
    browser.find("body").send_keys(Keys.TAB)
    assert browser.driver.switch_to.active_element.text == "Skip to content"
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.script("return document.activeElement.id") == "main"
    browser.find("#main").send_keys(Keys.TAB)
    focused = browser.driver.switch_to.active_element
    assert focused.tag_name == "select"
    assert browser.script("return getComputedStyle(arguments[0]).outlineStyle", focused) != "none"


def test_what_is_wrong_stands_at_its_field(open_browser):
    browser = open_browser()
    browser.sign_in()
    browser.open("/ui/new")
    browser.find("#spec").send_keys('{"model_id": "mdl_none", "repair": {"budget_seconds": -1}, "datasets": {}}')
    browser.click("#validate")
    browser.until(lambda: browser.find("#f-repair\\.budget_seconds").get_attribute("aria-invalid") == "true")
    assert browser.find("[data-wrong='repair.budget_seconds']").is_displayed()
    assert browser.find("[data-wrong='datasets.repair']").is_displayed()
    browser.find("#spec").clear()
    browser.find("#spec").send_keys("{")
    browser.click("#validate")
    browser.until(lambda: browser.find("#spec-wrong").is_displayed())


def test_an_upload_goes_on_where_it_broke_off(open_browser, tmp_path):
    browser = open_browser()
    browser.sign_in()
    browser.open("/ui/new")
    large = tmp_path / "repair.npz"
    large.write_bytes(b"PK" + bytes(150 * 2**20))
    browser.script("""window.sent = []; const asked = fetch;
      window.fetch = (url, options) => {
        if (options?.method === "PUT") {
          window.sent.push(url);
          if (window.sent.length === 2) return Promise.reject(new TypeError("cut"));
        }
        return asked(url, options);
      };""")
    browser.drop("#drop", large)
    browser.until(lambda: "Ready." in browser.text, 90)
    sent = [url.rsplit("/", 1)[1] for url in browser.script("return window.sent")]
    assert sorted(set(sent)) == ["1", "2", "3"]
    assert len(sent) == 4, "one part was sent twice, the others once"
    browser.driver.refresh()
    browser.drop("#drop", large)
    browser.until(lambda: "Ready." in browser.text, 30)
    asked = browser.script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert not [url for url in asked if "/parts/" in url], "the finished upload of the same file is used again"


def test_the_jobs_are_there_at_once(open_browser):
    browser = open_browser()
    browser.sign_in()
    browser.open("/ui/jobs")
    entry = browser.script("return performance.getEntriesByType('navigation')[0].toJSON()")
    print(f"the list of jobs has loaded after {entry['loadEventEnd']:.0f} ms")
    assert entry["loadEventEnd"] < 3000


def test_a_page_left_open_goes_to_the_sign_in_when_its_session_has_ended(open_browser):
    browser = open_browser()
    browser.sign_in()
    browser.open("/ui/jobs?status=failed")
    browser.script("fetch('/ui/sign-out', {method: 'POST'})")
    browser.until(lambda: browser.path == "/ui/sign-in")
    browser.find("#key").send_keys(browser.key, Keys.ENTER)
    browser.until(lambda: browser.driver.current_url.endswith("/ui/jobs?status=failed"))
