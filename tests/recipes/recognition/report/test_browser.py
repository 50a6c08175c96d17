"""The report in a browser: nothing goes wrong in it, nothing is fetched, nothing is wider than a telephone."""

import http.server
import json
import shutil
import subprocess
import threading

import pytest
from tone_report import TonesOfReport, heard, tone_set, totals_of

from lightning_novograd.recipes.asr.recognition.report import media, page

pytestmark = pytest.mark.slow

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
# the page in a frame of a width, and what can be said of it when it is there
HARNESS = """<!DOCTYPE html><link rel="icon" href="data:,"><body style="margin: 0">
<iframe src="/report.html" style="border: 0; width: %dpx; height: 3000px"></iframe><pre></pre>
<script>
document.querySelector("iframe").onload = async (event) => {
  const page = event.target.contentDocument, root = page.documentElement;
  const images = [...page.images].map((image) => image.naturalWidth);
  const sounds = await Promise.all([...page.querySelectorAll("audio")].map((audio) => new Promise((done) => {
    audio.onloadedmetadata = () => done(audio.duration);
    audio.onerror = () => done(-1);
    audio.preload = "metadata";
    audio.load();
  })));
  const wide = [...page.querySelectorAll("body *")].filter((element) =>
    element.getBoundingClientRect().right > root.clientWidth + 1 && !element.closest(".scroll, .hidden"));
  document.querySelector("pre").textContent = JSON.stringify({
    client: root.clientWidth, scroll: root.scrollWidth, wide: wide.map((element) => element.outerHTML.slice(0, 80)),
    images, sounds, scripts: page.scripts.length, background: getComputedStyle(page.body).backgroundColor});
};
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium on the path")
@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (400, "dark"), (1200, "light")])
def test_in_a_browser(tmp_path, monkeypatch, width, scheme):
    # browsers play nothing below 3000 Hz
    monkeypatch.setattr(page, "player", lambda wave, rate: media.player(wave, 8 * rate))
    dataset = tone_set(tmp_path)
    hypotheses = heard(dataset)
    report = page.render(TonesOfReport(), dataset, hypotheses, totals_of(dataset, hypotheses))
    pages = {"/report.html": report, "/harness.html": HARNESS % width}
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.headers["Host"] == host or self.headers["Referer"]:  # others are the browser's own
                asked.append((self.headers["Host"], self.path))
            content = pages.get(self.path, "").encode()
            self.send_response(200 if content else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"127.0.0.1:{server.server_port}"
    try:
        done = subprocess.run(
            [
                str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                "--disable-component-update", "--disable-sync", "--no-first-run", "--enable-logging=stderr",
                f"--user-data-dir={tmp_path / 'profile'}", f"--host-resolver-rules=MAP * {host}",
                f"--blink-settings=preferredColorScheme={int(scheme == 'light')}", "--window-size=1300,3000",
                "--virtual-time-budget=10000", "--dump-dom", f"http://{host}/harness.html",
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )  # fmt: skip
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    assert asked == [(host, "/harness.html"), (host, "/report.html")]
    seen = json.loads(done.stdout.partition("<pre>")[2].partition("</pre>")[0])
    assert seen["scroll"] <= seen["client"] <= width
    assert seen["wide"] == []
    assert seen["scripts"] == 0
    assert len(seen["images"]) == len(seen["sounds"]) == 8
    assert min(seen["images"]) > 100
    assert min(seen["sounds"]) > 0.1
    assert seen["background"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 22, 22)"}[scheme]
