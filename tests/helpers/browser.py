"""Headless Chromium by its DevTools protocol over two pipes: no driver and no package is needed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
WAIT_S = 60.0
KEYS = {
    "Enter": 13,
    "Escape": 27,
    "End": 35,
    "Home": 36,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}


class Browser:
    """One tab."""

    def __init__(self, commands: int, answers: int, folder: Path) -> None:
        self._commands, self._answers = commands, answers
        self._number, self._rest, self._session = 0, b"", ""
        self.events: list[dict[str, Any]] = []
        self.folder = folder
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), eventsEnabled=True)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                found: dict[str, Any] = answer["result"]
                return found

    def wait(self, event: str) -> dict[str, Any]:
        """The next event of that name that has not been waited for."""
        while True:
            for at, seen in enumerate(self.events):
                if seen["method"] == event:
                    return dict(self.events.pop(at)["params"])
            self._next()

    def open(self, page: Path) -> None:
        """Load a file and wait until its scripts have run."""
        self.events = [e for e in self.events if e["method"] != "Page.loadEventFired"]
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait("Page.loadEventFired")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script: str, value: Any) -> None:
        """Wait for what the page does after an event."""
        script = f"new Promise((done) => setTimeout(() => done({script}), 20))"
        end = time.monotonic() + WAIT_S
        while (found := self.run(script)) != value:
            assert time.monotonic() < end, f"{script} stays {found!r}"

    def press(self, *keys: str) -> None:
        """Keys as a person presses them: ``m``, ``ArrowRight``, ``Escape``, ``Tab``."""
        for key in keys:
            code = KEYS.get(key, 9 if key == "Tab" else ord(key.upper()) if len(key) == 1 else 0)
            text = "\r" if key == "Enter" else key if len(key) == 1 else ""
            common = {"key": key, "code": f"Key{key.upper()}" if len(key) == 1 else key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
            self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self.call("Input.insertText", text=text)

    def download(self) -> bytes:
        """The file that the page offers now."""
        begun = self.wait("Browser.downloadWillBegin")
        while self.wait("Browser.downloadProgress")["state"] != "completed":
            pass
        return (self.folder / begun["suggestedFilename"]).read_bytes()

    def picture(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """A screenshot of that size."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.run("new Promise((done) => setTimeout(done, 300))")
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + WAIT_S
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(until - time.monotonic(), 0))
            assert ready, f"Chromium says nothing for {WAIT_S:.0f} s"
            data = os.read(self._answers, 1 << 20)
            assert data, "Chromium has ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with a fresh profile in ``folder``, ended with the block."""
    (from_us, commands), (answers, to_us) = os.pipe(), os.pipe()
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
    os.set_inheritable(from_us, True)
    os.set_inheritable(to_us, True)
    # The protocol is read from descriptor 3 and written to 4.
    shell = f'exec "$0" "$@" 3<&{from_us} 4>&{to_us}'
    process = subprocess.Popen(
        ["bash", "-c", shell, CHROMIUM, *flags, f"--user-data-dir={folder / 'profile'}"],
        pass_fds=(from_us, to_us),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(from_us)
    os.close(to_us)
    try:
        yield Browser(commands, answers, folder)
    finally:
        process.terminate()
        process.wait(30)
        os.close(commands)
        os.close(answers)
