"""A headless Chromium, driven by chromedriver over plain WebDriver (https://www.w3.org/TR/webdriver2/).

Debian's packages chromium and chromium-driver; a client library would be larger than what is used of it.
"""

import base64
import contextlib
import http.client
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

__all__ = ["Browser", "BrowserError", "installed", "open_browser"]

# Chromium must not look for its maker's hosts: on a closed network every attempt is refused and logged.
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    "--force-color-profile=srgb",
)
# A reference to an element in WebDriver's JSON.
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
TIMEOUT = 60
# A script that waits in the page says so after LOOK; one that a navigation took away is given up after PATIENCE. In s.
LOOK, PATIENCE = 2, 8


class BrowserError(Exception):
    """What chromedriver, or a script in the page, refused."""


def installed() -> bool:
    """Whether both programs are there."""
    return all(shutil.which(name) for name in ("chromium", "chromedriver"))


class Browser:
    """One window. Commands raise BrowserError."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        self._session = ""

    def start(self, profile: Path) -> Self:
        options = {
            "args": [*ARGUMENTS, f"--user-data-dir={profile}"],
            "binary": shutil.which("chromium"),
        }
        capabilities = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
            "timeouts": {"script": PATIENCE * 1000},
        }
        answer = self._call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._session = f"/session/{answer['sessionId']}"
        return self

    def close(self) -> None:
        if self._session:
            with contextlib.suppress(BrowserError, OSError, http.client.HTTPException):
                self._call("DELETE", self._session)
        self._connection.close()

    def open(self, page: Path, width: int = 1440, height: int = 900) -> None:
        """Load a file and wait until its script is through."""
        self.resize(width, height)
        self.command("url", url=page.as_uri())

    def resize(self, width: int, height: int) -> None:
        # The page's own size, whatever frame the window has; also for those narrower than a window may be.
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def devtools(self, method: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return self.command("goog/cdp/execute", cmd=method, params=parameters)

    def run(self, script: str, *arguments: Any) -> Any:
        """What `script`, the body of a function, returns; `arguments` are its `arguments`."""
        return self.command("execute/sync", script=script, args=list(arguments))

    def until(self, condition: str, *arguments: Any) -> Any:
        """What the expression `condition` is as soon as it is true: looked at in every frame.

        Also on the next page: a script ends with the page that it runs in, and chromedriver tells that as one that
        took too long.
        """
        script = f"""
            const parameters = [...arguments], done = parameters.pop(), end = performance.now() + {LOOK * 1000};
            addEventListener("pagehide", () => done([null]));
            const look = () => {{
                const value = (function () {{ return {condition}; }}).apply(null, parameters);
                if (value || performance.now() > end) done([value]); else requestAnimationFrame(look);
            }};
            look();
        """
        patience = time.monotonic() + TIMEOUT / 2
        while True:
            lost: BrowserError | None = None
            try:
                answer = self.command("execute/async", script=script, args=list(arguments))
            except BrowserError as error:
                if not str(error).startswith(("script timeout", "javascript error: document unloaded", "aborted")):
                    raise
                lost, answer = error, None
            if answer and answer[0]:
                return answer[0]
            if time.monotonic() > patience:
                page = self.run("return [location.href, document.documentElement.outerHTML.slice(0, 300)]")
                raise BrowserError(f"not true within {TIMEOUT / 2:g} s: {condition}; the page: {page}") from lost

    def settle(self) -> None:
        """Wait until what was asked to be drawn in the next frame is."""
        script = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done(true)));"
        self.command("execute/async", script=script, args=[])

    def find(self, selector: str) -> str:
        """The element's reference."""
        return str(self.command("element", using="css selector", value=selector)[ELEMENT])

    def click(self, selector: str) -> None:
        self.command(f"element/{self.find(selector)}/click")

    def write(self, selector: str, text: str) -> None:
        """Into an input, instead of what is there."""
        element = self.find(selector)
        self.command(f"element/{element}/clear")
        self.command(f"element/{element}/value", text=text)

    def keys(self, text: str) -> None:
        """Press keys wherever the focus is."""
        actions = [{"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")]
        self.command("actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def drag(self, start: tuple[int, int], end: tuple[int, int]) -> None:
        """With the pointer, between two points of the page."""
        steps = [start, ((start[0] + end[0]) // 2, (start[1] + end[1]) // 2), end]
        moves = [{"type": "pointerMove", "duration": 0, "x": x, "y": y, "origin": "viewport"} for x, y in steps]
        actions = [moves[0], {"type": "pointerDown", "button": 0}, *moves[1:], {"type": "pointerUp", "button": 0}]
        pointer = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions}
        self.command("actions", actions=[pointer])

    def errors(self) -> list[str]:
        """What the console said since the last call: errors, warnings, and what the page's policy forbade."""
        return [entry["message"] for entry in self.command("se/log", type="browser") if entry["level"] != "DEBUG"]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.command("screenshot", "GET")))

    def command(self, name: str, method: str = "POST", **parameters: Any) -> Any:
        """A command of the session."""
        return self._call(method, f"{self._session}/{name}", parameters if method == "POST" else None)

    def _call(self, method: str, path: str, content: Any = None) -> Any:
        body = None if content is None else json.dumps(content)
        self._connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = json.loads(self._connection.getresponse().read())["value"]
        if isinstance(answer, dict) and "error" in answer:
            raise BrowserError(f"{answer['error']}: {answer.get('message', '')}")
        return answer


@contextlib.contextmanager
def open_browser(directory: Path) -> Iterator[Browser]:
    """A browser whose profile and logs are in `directory`, and that is gone afterwards."""
    log = directory / "chromedriver.log"
    environment = {**os.environ, "HOME": str(directory), "XDG_RUNTIME_DIR": str(directory)}
    with subprocess.Popen(
        ["chromedriver", "--port=0", f"--log-path={log}"],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as driver:
        assert driver.stdout is not None
        try:
            # "ChromeDriver was started successfully on port 38217."
            started = next((line for line in driver.stdout if "successfully on port" in line), "")
            port = int(started.rstrip(".\n").rpartition(" ")[2] or 0)
            if not port:
                raise BrowserError(f"chromedriver did not start, see {log}")
            browser = Browser(port)
            try:
                yield browser.start(directory / "profile")
            finally:
                browser.close()
        finally:
            driver.terminate()
