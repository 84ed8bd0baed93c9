"""A headless Chromium by the WebDriver protocol: a few requests, for which no library is needed."""

import shutil
import subprocess
from contextlib import contextmanager

import httpx

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@contextmanager
def running_browser(profile, *, dark=False):
    """A function `call(method, path, **body)` into a session of its own, with nothing of any other profile."""
    process = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        line = next(line for line in process.stdout if "started successfully on port" in line)
        base = f"http://127.0.0.1:{line.rstrip().rstrip('.').split()[-1]}"
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        options = {"binary": CHROMIUM, "args": [*arguments, f"--user-data-dir={profile}"]}
        asked = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        with httpx.Client(base_url=base, timeout=60, trust_env=False) as http:
            made = http.post("/session", json={"capabilities": {"alwaysMatch": asked}}).raise_for_status().json()

            def call(method, path, **body):
                path = f"/session/{made['value']['sessionId']}{path}"
                answer = http.request(method, path, json=body if method == "POST" else None)
                return answer.raise_for_status().json()["value"]

            scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
            call("POST", "/goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params={"features": scheme})
            yield call
            call("DELETE", "")
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()
