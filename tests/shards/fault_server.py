"""An HTTP server of a folder that sends ranges, and fails on demand."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FaultServer:
    """Serves ``folder`` on loopback.

    Attributes:
        url: Of the folder.
        faults: (end of a path, fault) pairs, each used up by one request for such a path. A fault is an HTTP status,
            ``slow`` (waits ``delay`` seconds), ``cut`` (ends in the middle of the content), ``short`` (says and sends
            less), ``long`` (sends more), ``changed`` (another byte in the middle), ``drop`` (no answer).
        ranges: Whether it sends parts; otherwise always the whole file.
        requests: (path, range header) of each request.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.faults, self.ranges, self.delay = folder, [], True, 1.0
        self.requests: list[tuple[str, str | None]] = []
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *args) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take_fault(self, path: str) -> str | None:
        with self._lock:
            for number, (end, _) in enumerate(self.faults):
                if path.endswith(end):
                    return self.faults.pop(number)[1]
        return None

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        span = request.headers.get("Range")
        self.requests.append((request.path, span))
        fault = self.take_fault(request.path)
        path = self.folder / request.path.lstrip("/")
        if fault == "slow":
            time.sleep(self.delay)
        if fault == "drop":
            request.close_connection = True
            return
        status = int(fault) if fault and fault.isdigit() else 200 if path.is_file() else 404
        content = path.read_bytes() if status == 200 else b"an error page"
        if status == 200 and span and self.ranges:
            start, end = span.removeprefix("bytes=").split("-")
            content, status = content[int(start) : int(end) + 1], 206
        middle = len(content) // 2
        changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        content = {"short": content[:middle], "long": content + b"more", "changed": changed}.get(fault, content)
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if fault == "cut":
            content = content[:middle]
            request.close_connection = True
        request.wfile.write(content)
