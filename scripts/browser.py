"""A headless Chromium, driven over WebDriver with nothing but the standard library."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import urllib.error
import urllib.request

TOOLS = ["chromium", "chromedriver"]
CHROMIUM = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--ignore-certificate-errors", "--disable-dev-shm-usage"]


class Browser:
    """One window with a profile of its own in a folder; everything of it ends with the `with` block."""

    def __init__(self, folder, *arguments):
        self.arguments = [*CHROMIUM, "--user-data-dir=" + os.path.join(folder, "browser"), *arguments]
        self.driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE,
                                       stderr=subprocess.DEVNULL, text=True, start_new_session=True,
                                       env=dict(os.environ, TMPDIR=folder, HOME=folder))

    def __enter__(self):
        try:
            port = next(int(found.group(1)) for line in self.driver.stdout
                        if (found := re.search(r"started successfully on port (\d+)", line)))
            self.base = f"http://127.0.0.1:{port}/session"
            wanted = {"browserName": "chrome", "acceptInsecureCerts": True,
                      "goog:chromeOptions": {"args": self.arguments, "binary": shutil.which("chromium")}}
            self.base += "/" + self.call("", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
            self.call("/timeouts", {"script": 180_000})
            return self
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_):
        # The driver and its browsers are a session of processes.
        os.killpg(self.driver.pid, signal.SIGKILL)
        self.driver.wait()

    def call(self, path, body=None):
        """What the driver answers to a POST of `body`, or to a GET."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"})
        # Loopback is never reached through a proxy.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=200) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            # What went wrong is in the body only.
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def open(self, url):
        self.call("/url", {"url": url})

    def run(self, script, *arguments):
        """What the script returns."""
        return self.call("/execute/sync", {"script": script, "args": arguments})

    def wait(self, script, *arguments):
        """What the script passes to its last argument."""
        return self.call("/execute/async", {"script": script, "args": arguments})

    def press(self, selector):
        """A real click."""
        found = self.call("/element", {"using": "css selector", "value": selector})
        self.call(f"/element/{next(iter(found.values()))}/click", {})

    def screenshot(self, path):
        with open(path, "wb") as out:
            out.write(base64.b64decode(self.call("/screenshot")))
