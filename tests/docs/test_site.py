"""The built site in a browser, as wide as a phone: no page scrolls sideways, every picture is there."""

import functools
import http.server
import json
import queue
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import yaml
from pages import ROOT

from lightning_novograd import __version__

SITE = ROOT / "site"  # of `make docs`
PHONE, DESK = 400, 1280
CHROMIUM = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"),
]
# Opens one page after the other in a frame of each width, and sends what it has measured
MEASURE = """<!doctype html><body><script>
const load = (page, width) => new Promise(done => {
  const frame = document.createElement("iframe");
  frame.style = `width: ${width}px; height: 900px; border: 0`;
  frame.onload = async () => {
    await new Promise(wait => setTimeout(wait, 150));  // tables are given a frame of their own by a script
    const root = frame.contentDocument;
    for (const image of root.images) image.loading = "eager";
    await Promise.all([...root.images].map(image => image.decode().catch(() => null)));
    const missing = [...root.images].filter(image => !image.naturalWidth).map(image => image.src);
    const found = {page, width, scrolls: root.documentElement.scrollWidth, missing};
    frame.remove();
    done(found);
  };
  frame.src = page;
  document.body.append(frame);
});
(async () => {
  const found = [];
  for (const width of WIDTHS) for (const page of PAGES) found.push(await load(page, width));
  await fetch("/found", {method: "POST", body: JSON.stringify(found)});
})();
</script>"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """The site, the page that measures, and a place for what it finds."""

    found: queue.Queue
    measure: bytes

    def do_GET(self):
        if self.path != "/measure":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.measure)

    def do_POST(self):
        self.found.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        """Nothing on the terminal."""


def measured(site: Path, folder: Path, chromium: str) -> list[dict]:
    """For each page and width: how wide it is, and which of its pictures are missing."""
    pages = [f"/{path.relative_to(site).as_posix()}" for path in sorted(site.rglob("*.html"))]
    Handler.found = queue.Queue()
    Handler.measure = MEASURE.replace("PAGES", json.dumps(pages)).replace("WIDTHS", f"[{PHONE}, {DESK}]").encode()
    handler = functools.partial(Handler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/measure"
        command = [chromium, *CHROMIUM, f"--user-data-dir={folder}", "--window-size=1400,1000", address]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
            try:
                return Handler.found.get(timeout=600)
            finally:
                browser.terminate()
                server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return found or pytest.skip("needs chromium")


@pytest.fixture(scope="module")
def found(chromium, tmp_path_factory):
    if not (SITE / "index.html").is_file():
        pytest.skip("needs the site: make docs")
    return measured(SITE, tmp_path_factory.mktemp("browser"), chromium)


def test_no_page_scrolls_sideways(found):
    assert len(found) > 40
    assert [page for page in found if page["scrolls"] > page["width"]] == []


def test_no_picture_is_missing(found):
    assert [page for page in found if page["missing"]] == []


def test_a_page_that_is_too_wide_is_found(chromium, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "wide.html").write_text('<div style="width: 500px">x</div><img src="none.png">')
    phone, desk = measured(tmp_path / "site", tmp_path / "browser", chromium)
    assert (phone["width"], phone["scrolls"] > 500, desk["scrolls"]) == (PHONE, True, DESK)
    assert phone["missing"][0].endswith("none.png")


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == __version__
    assert "1905.11286" in citation["preferred-citation"]["url"]


def test_llms_txt_leads_to_what_is_there():
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "llms.txt").read_text("utf-8"))
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []
