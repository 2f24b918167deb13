"""Headless Chromium by its debugging pipe (no package needed): pages, clicks, files, pictures of the page."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio"),
    *("--no-default-browser-check", "--disable-dev-shm-usage", "--hide-scrollbars", "--lang=en-GB"),
)


def program():
    """Path of the browser, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a browser; a context manager. asked: URLs of all requests, said: errors of its console."""

    def __init__(self, size=(1280, 900)):
        self.number, self.asked, self.said, self.size = 0, [], [], size

    def __enter__(self):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self.out = os.pipe()
        self.back, theirs_out = os.pipe()
        shell = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        command = [
            "bash",
            "-c",
            shell,
            program(),
            *FLAGS,
            f"--user-data-dir={self.profile.name}",
            "about:blank",
        ]
        self.process = subprocess.Popen(
            command, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs_in), os.close(theirs_out)
        self.buffer, self.session = b"", None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
            self.send(f"{domain}.enable")
        self.resize(*self.size)
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            os.write(self.out, json.dumps({"id": 0, "method": "Browser.close"}).encode() + b"\0")
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.out), os.close(self.back)
        self.profile.cleanup()

    def send(self, method, **parameters):
        """The answer to a command of the DevTools protocol."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def read(self, seconds=60):
        """The next message; events are noted."""
        while b"\0" not in self.buffer:
            assert select.select([self.back], [], [], seconds)[0], "the browser does not answer"
            more = os.read(self.back, 1 << 20)
            assert more, "the browser has ended"
            self.buffer += more
        text, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(text)
        parameters = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.asked.append(parameters["request"]["url"])
        if message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.said.append(parameters["entry"]["text"])
        if message.get("method") == "Runtime.exceptionThrown":
            self.said.append(str(parameters["exceptionDetails"]))
        return message

    def resize(self, width, height, phone=False, dark=False):
        """The window's size, and whether it is a phone's and at night."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url):
        """Goes to an address."""
        self.send("Page.navigate", url=url)
        self.until("document.readyState == 'complete'")

    def run(self, script):
        """The value of a JavaScript expression; promises are waited for."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script, seconds=30):
        """Waits until an expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < deadline, f"{script} does not come true"
            time.sleep(0.03)

    def files(self, selector, *paths):
        """Chooses files in an input."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=list(map(str, paths)))

    def drop(self, x, y, *paths, let_go=True):
        """Drags files to a place of the page and lets go of them there."""
        data = {"items": [], "files": list(map(str, paths)), "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", *["drop"] * let_go):
            self.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def paste(self, png, origin):
        """Puts a picture, bytes of a PNG, into the clipboard and presses Ctrl+V."""
        names = ["clipboardReadWrite", "clipboardSanitizedWrite"]
        session, self.session = self.session, None
        self.send("Browser.grantPermissions", permissions=names, origin=origin)
        self.session = session
        self.send("Emulation.setFocusEmulationEnabled", enabled=True)
        text = base64.b64encode(png).decode()
        bits = f"Uint8Array.from(atob('{text}'), c => c.charCodeAt(0))"
        self.run(
            "navigator.clipboard.write([new ClipboardItem({'image/png': "
            f"new Blob([{bits}], {{type: 'image/png'}})}})])"
        )
        for kind in ("rawKeyDown", "keyUp"):
            more = {"commands": ["paste"]} if kind == "rawKeyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key="v", code="KeyV", modifiers=2, **more)

    def key(self, key, modifiers=0):
        """Presses a key; modifiers: 1 is Alt."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, modifiers=modifiers, **text)

    def picture(self):
        """PNG bytes of what is seen."""
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
