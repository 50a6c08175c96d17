"""A server on this machine for tests of downloads: it breaks off, errs and recovers as it is told."""

import contextlib
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer:
    """Files by name, and for each a list of what happens to the next requests; after those all is well.

    What can happen: a number of bytes after which the connection breaks, ``"no range"`` (the whole file, whatever was
    asked for), ``"status 503"``, or bytes that are sent instead of the file.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, bytes] = {}
        self.happens: dict[str, list[int | str | bytes]] = defaultdict(list)
        self.requests: list[tuple[str, str | None]] = []  # names, and the ranges asked for


@contextlib.contextmanager
def file_server() -> Iterator[FileServer]:
    """A server, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            asked = self.headers.get("Range")
            server.requests.append((name, asked))
            event = server.happens[name].pop(0) if server.happens[name] else None
            content = event if isinstance(event, bytes) else server.files.get(name)
            if isinstance(event, str) and event.startswith("status"):
                self.send_error(int(event.split()[1]))
                return
            if content is None:
                self.send_error(404)
                return
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and event != "no range" else 0
            if start >= len(content) > 0:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            end = start + event if isinstance(event, int) else len(content)
            self.wfile.write(content[start:end])

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that has heard enough is no error."""

    http = Server(("127.0.0.1", 0), Handler)
    server = FileServer(f"http://127.0.0.1:{http.server_address[1]}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
