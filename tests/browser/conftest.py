"""A real chromium on a running service, with the demo's faulty model and pictures."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

from archrepair_client.running import RunningService, running_service

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-dev-shm-usage")  # fmt: skip
AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text()
RUN_AXE = """const done = arguments[0];
const told = ({impact, id, nodes}) => ({impact, id, places: nodes.slice(0, 3).map((node) => node.html.slice(0, 200))});
axe.run(document, {resultTypes: ["violations"]}).then((found) => done(found.violations.map(told)));"""
WIDE, PHONE = 1280, 390


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.timeout(1800))


@dataclass(frozen=True)
class Browser:
    """A window of one width, and how people use it."""

    driver: WebDriver
    url: str
    key: str

    def open(self, path: str) -> None:
        self.driver.get(self.url + path)

    def sign_in(self) -> None:
        self.open("/ui/jobs")
        self.find("#key").send_keys(self.key)
        self.click("button.primary")
        self.until(lambda: self.path == "/ui/jobs")

    @property
    def path(self) -> str:
        return "/" + self.driver.current_url.removeprefix(self.url).partition("?")[0].lstrip("/")

    @property
    def text(self) -> str:
        return str(self.script("return document.body.innerText"))

    def find(self, css: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def button(self, words: str) -> Any:
        return self.driver.find_element(By.XPATH, f"//button[normalize-space()='{words}']")

    def click(self, css: str) -> None:
        self.find(css).click()

    def script(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def until(self, holds: Callable[[], Any], seconds: float = 60) -> Any:
        """The first true value. A part of the page that is being exchanged is looked for again."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if value := holds():
                    return value
            except Exception as error:  # noqa: BLE001  the driver's errors have no common name for "not there now"
                last: object = error
            else:
                last = None
            time.sleep(0.1)
        raise AssertionError(f"did not happen within {seconds} s: {last or self.text[-2000:]}")

    def drop(self, css: str, *files: Path) -> None:
        """Let go of files over an element, as the operating system tells the browser of it."""
        box = self.script("return document.querySelector(arguments[0]).getBoundingClientRect()", css)
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "data": data}
        for step in ("dragEnter", "dragOver", "drop"):
            self.driver.execute_cdp_cmd("Input.dispatchDragEvent", {"type": step, **where})

    def serious(self) -> list[dict[str, Any]]:
        """What axe finds on this page that keeps somebody from using it."""
        self.script(AXE)
        return [rule for rule in self.driver.execute_async_script(RUN_AXE) if rule["impact"] in ("serious", "critical")]

    def errors(self) -> list[str]:
        """What the console says since it was asked last."""
        return [line["message"] for line in self.driver.get_log("browser") if line["level"] == "SEVERE"]  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def case(tmp_path_factory) -> Path:
    """The directory of a model, and of pictures it fails on."""
    directory = tmp_path_factory.mktemp("case")
    subprocess.run((sys.executable, "-m", "archrepair_core.demo.digits", str(directory)), check=True)
    return directory


@pytest.fixture(scope="session")
def service(tmp_path_factory) -> Iterator[RunningService]:
    with running_service(tmp_path_factory.mktemp("service") / "state") as running:
        yield running


@pytest.fixture(scope="session")
def open_browser(service, tmp_path_factory) -> Iterator[Callable[..., Browser]]:
    """Opens windows, each with a profile of its own."""
    if CHROMIUM is None or CHROMEDRIVER is None:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    drivers: list[WebDriver] = []

    def open_one(width: int = WIDE) -> Browser:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
        drivers.append(driver)
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        return Browser(driver, service.url, Path(service.api_key_file).read_text().strip())

    yield open_one
    for driver in drivers:
        driver.quit()
