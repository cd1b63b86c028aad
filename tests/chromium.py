"""Chromium without a window, spoken to by its own protocol: what a page shows, says, and asks the network for."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

MISSING = "chromium is missing, so that no page is opened; Debian's package of that name installs it"

OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-extensions", "--remote-debugging-pipe",
)  # fmt: skip

PATIENCE = 60.0
"""Seconds for an answer: other tests run meanwhile."""

DRAWN = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"


class Browser:
    """A running Chromium and one page of it.

    Attributes:
        complaints: what the page's console was told: errors, warnings and exceptions.
        requests: what was asked for since the page was opened, but for the page itself and data that it has inside.
    """

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._rest, self._number = read, write, b"", 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something; the answer."""
        self._number += 1
        asked = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            asked["sessionId"] = self._session
        os.write(self._write, json.dumps(asked).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self._number:
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            assert ready, "chromium does not answer"
            part = os.read(self._read, 1 << 20)
            assert part, "chromium has ended"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._take(message.get("method", ""), message.get("params", {}))
        return message

    def _take(self, method: str, facts: dict[str, Any]) -> None:
        self.events.append({"method": method, **facts})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(facts["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(facts["args"]))
        elif method == "Log.entryAdded":
            self.complaints.append(facts["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not facts["request"]["url"].startswith(("data:", "blob:")):
            self.requests.append(facts["request"]["url"])

    def open(self, path: Path, *, width: int = 1200, dark: bool = False) -> None:
        """Open a file and wait until its charts are drawn."""
        self.complaints.clear()
        self.requests.clear()
        self.events.clear()
        mobile = width < 700
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=(address := path.resolve().as_uri()))
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next()
        self.run(DRAWN)
        self.requests = [url for url in self.requests if url != address]

    def run(self, script: str) -> Any:
        """The value of an expression on the page, awaited where it is a promise."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, path: Path) -> None:
        """Write a PNG of all of the page."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def printed(self) -> bytes:
        """The page as a PDF."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A Chromium with a profile of its own, which ends with the block."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        (their_read, write), (read, their_write) = os.pipe(), os.pipe()
        # it takes 3 and 4, so that these must be others
        given = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (their_read, their_write)]
        command = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        piped = ["bash", "-c", f'exec "$0" "$@" 3<&{given[0]} 4>&{given[1]}', *command]
        process = subprocess.Popen(piped, pass_fds=given, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        for end in (their_read, their_write, *given):
            os.close(end)
        try:
            yield Browser(read, write)
        finally:
            os.close(write)  # it leaves when nobody speaks to it any more
            os.close(read)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
