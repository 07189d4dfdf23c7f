"""A chat-completions service on this machine that answers well, badly, late or not at all."""

import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Behaviour = Callable[["Handler"], None]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request, client_address):
        # A client that gives up in the middle is what is tested.
        if not isinstance(sys.exception(), OSError | ValueError):
            super().handle_error(request, client_address)


class FakeService:
    """Answers with `reply(messages)`; the first requests meet the behaviours in `script` instead.

    Attributes:
      bodies, headers, times: of the requests that came, in order.
      served: requests answered by `reply`.
      busiest: the most requests that were under way at a time.
      die_after: the service dies on the first request after so many have been served.
    """

    def __init__(self, reply=lambda messages: "re: " + messages[-1]["content"], script=()):
        self.reply, self.script, self.die_after = reply, list(script), None
        self.bodies, self.headers, self.times = [], [], []
        self.served = self.busiest = self.under_way = 0
        self.seconds = 0.0
        self.lock = threading.Lock()
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Begin, or come back after dying, at the same address."""
        self.dead, self.die_after = False, None
        handler = type("Bound", (Handler,), {"service": self})
        self.server = Server(("127.0.0.1", self.port), handler)
        self.port = self.server.server_port
        serve = self.server.serve_forever
        threading.Thread(target=serve, args=(0.01,), daemon=True).start()

    def die(self) -> None:
        """Refuse connections, and drop those that are open at their next request."""
        self.dead = True
        self.server.shutdown()
        self.server.server_close()

    def wait_for(self, requests: int) -> None:
        """Return once so many are under way."""
        deadline = time.monotonic() + 5
        while self.under_way < requests:
            assert time.monotonic() < deadline, f"{self.under_way} of {requests} requests came"
            time.sleep(0.005)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if not self.dead:
            self.die()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    service: FakeService

    def do_POST(self):
        service = self.service
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with service.lock:
            service.bodies.append(self.body)
            service.headers.append(dict(self.headers) | {"path": self.path})
            service.times.append(time.monotonic())
            service.under_way += 1
            service.busiest = max(service.busiest, service.under_way)
            behave = service.script.pop(0) if service.script else answer
            dying = not service.dead and service.die_after == service.served
            lives = not (service.dead or dying)
            service.dead |= dying
            service.served += lives and behave is answer
        try:
            if lives:
                behave(self)
            else:
                drop(self)
        finally:
            with service.lock:
                service.under_way -= 1
        if dying:
            service.die()

    def send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


def completion(text, **usage: int) -> bytes:
    choices = [{"index": 0, "message": {"role": "assistant", "content": text}}]
    return json.dumps({"choices": choices, **({"usage": usage} if usage else {})}).encode()


def answer(handler: Handler) -> None:
    time.sleep(handler.service.seconds)
    text = handler.service.reply(handler.body["messages"])
    handler.send(200, completion(text, prompt_tokens=10, completion_tokens=5))


def status(code: int, content: str = "{}", **headers: str) -> Behaviour:
    return lambda handler: handler.send(code, content.encode(), **headers)


def slow(seconds: float) -> Behaviour:
    def behave(handler):
        time.sleep(seconds)
        answer(handler)

    return behave


def drip(seconds: float) -> Behaviour:
    """Sends something all the time and never all of it."""

    def behave(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            handler.wfile.write(b" ")
            time.sleep(0.02)
        drop(handler)

    return behave


def drop(handler: Handler) -> None:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)
