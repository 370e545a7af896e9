"""One headless chromium for all pages, spoken to by the DevTools protocol through two pipes.

Its window has a floor near 500 px; the protocol sets any width. Nothing is reached by network.
"""

import json
import os
import select
import shutil
import subprocess
import time
from itertools import count

PATIENCE = 60.0  # seconds
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]
# Drawn: MathJax is through, fonts are there, and two frames have passed since.
READY = """(async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  await document.fonts.ready;
  for (let i = 0; i < 2; i++) await new Promise(done => requestAnimationFrame(done));
})()"""


class Browser:
    """A running chromium with one tab.

    Args:
        profile: an empty folder for what it keeps.
    """

    def __init__(self, profile):
        theirs, self.write = os.pipe()
        self.read, answers = os.pipe()
        # Chromium reads commands from descriptor 3 and answers on 4.
        shell = f'exec "$0" "$@" 3<&{theirs} 4>&{answers}'
        command = [CHROMIUM, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(
            ["bash", "-c", shell, *command],
            pass_fds=(theirs, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(answers)
        self.rest, self.number, self.session, self.loads = b"", count(1), None, 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = found["sessionId"]
        self.call("Page.enable")

    def message(self) -> dict:
        """The next thing that chromium says, within a minute."""
        while b"\0" not in self.rest:
            if not select.select([self.read], [], [], PATIENCE)[0]:
                raise TimeoutError(f"chromium has said nothing for {PATIENCE:g} s")
            more = os.read(self.read, 1 << 20)
            if not more:
                raise ConnectionError("chromium has ended: start it by hand to see why")
            self.rest += more
        first, self.rest = self.rest.split(b"\0", 1)
        message = json.loads(first)
        # counted wherever it is read: it may come before the answer to what caused it
        self.loads += message.get("method") == "Page.loadEventFired"
        return message

    def call(self, method: str, **params) -> dict:
        """Have one command done; returns its result."""
        number = next(self.number)
        command = {"id": number, "method": method, "params": params}
        if self.session:
            command["sessionId"] = self.session
        os.write(self.write, json.dumps(command).encode() + b"\0")
        while (answer := self.message()).get("id") != number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def run(self, script: str):
        """What a script returns in the page, a promise awaited."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]["exception"].get("description")))
        return found["result"].get("value")

    def open(self, address: str) -> None:
        """Go to a page and wait until it is drawn."""
        before = self.loads
        self.call("Page.navigate", url=address)
        while self.loads == before:
            self.message()
        self.run(READY)

    def wait(self, condition: str, seconds: float = 10) -> None:
        """Wait until a script's value is true, or for so long."""
        end = time.monotonic() + seconds
        while not self.run(f"!!({condition})"):
            if time.monotonic() > end:
                raise TimeoutError(f"not within {seconds:g} s: {condition}")
            time.sleep(0.1)

    def resize(self, width: int, media: str = "screen", scheme: str = "light") -> None:
        """Show the page `width` px wide, on a screen or in print, light or dark."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        self.run(READY)

    def close(self) -> None:
        """End it."""
        os.close(self.write)
        os.close(self.read)
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
