"""Connections that a server may be about to close are not used again."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from trimtab.keep_alive import IDLE_SECONDS


def test_an_idle_connection_is_left_before_a_server_closes_it() -> None:
    ports = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # whose connections stay open

        def do_GET(self) -> None:
            ports.append(self.client_address[1])
            self.send_response(204)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    with httpx.Client(limits=httpx.Limits(keepalive_expiry=IDLE_SECONDS)) as client:
        client.get(url)
        client.get(url)
        time.sleep(IDLE_SECONDS + 0.2)
        client.get(url)
    server.shutdown()
    server.server_close()
    first, second, third = ports
    assert first == second != third
