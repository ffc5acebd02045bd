"""An HTTP server that answers like Slack, and a mail server, on this machine."""

from __future__ import annotations

import json
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mcq_analytics.settings import AlertSettings

WEBHOOK_SECRET = "T00000000-B00000000-wEbHoOkSeCrEt"
TOKEN = "xoxb-1234-tOkEnSeCrEt"
PASSWORD = "sMtPpAsSwOrD"
SECRETS = (WEBHOOK_SECRET, TOKEN, PASSWORD)


class SlackServer(ThreadingHTTPServer):
    """Answers as configured, and records what was posted."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), SlackHandler)
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body = "ok"
        self.behaviour = "answer"
        self.refuses: Callable[[dict[str, Any]], bool] = lambda _: False
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def webhook(self) -> AlertSettings:
        return AlertSettings(
            method="slack", slack_webhook_url=f"{self.url}/services/{WEBHOOK_SECRET}"
        )

    def token(self) -> AlertSettings:
        return AlertSettings(
            method="slack", slack_token=TOKEN, slack_channel="#alerts", slack_base_url=self.url
        )


class SlackHandler(BaseHTTPRequestHandler):
    server: SlackServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        posted = json.loads(body)
        self.server.requests.append((self.path, dict(self.headers), posted))
        if self.server.behaviour == "hang":
            self.server.released.wait(30)
        elif self.server.refuses(posted):
            self._answer(400, {}, "invalid_payload")
        elif self.server.behaviour == "answer":
            self._answer(self.server.status, self.server.headers, self.server.body)

    def do_GET(self) -> None:
        self._answer(200, {}, "<!doctype html><title>Slack</title>")

    def _answer(self, status: int, headers: dict[str, str], body: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


class SmtpServer(socketserver.ThreadingTCPServer):
    """Records the mails it accepts. `replies` overrides its answer to a COMMAND."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), SmtpHandler)
        self.greeting = "220 ready"
        self.features: tuple[str, ...] = ()
        self.replies: dict[str, str] = {}
        self.tls: ssl.SSLContext | None = None
        self.implicit_tls = False
        self.commands: list[str] = []
        self.mails: list[bytes] = []
        self.released = threading.Event()

    def settings(self) -> AlertSettings:
        return AlertSettings(
            method="email",
            email_from="mcq@example.org",
            email_to=("one@example.org", "two@example.org"),
            smtp_host="127.0.0.1",
            smtp_port=self.server_address[1],
        )

    def verbs(self) -> list[str]:
        return [command.split()[0].upper() for command in self.commands]


class SmtpHandler(socketserver.StreamRequestHandler):
    server: SmtpServer

    def handle(self) -> None:
        try:
            if self.server.implicit_tls:
                self._encrypt()
            self._converse()
        except OSError:  # the client hung up, as intended in some tests
            return

    def _converse(self) -> None:
        self._say(self.server.greeting)
        while line := self.rfile.readline():
            command = line.decode().strip()
            self.server.commands.append(command)
            verb = command.split()[0].upper()
            reply = self.server.replies.get(command.upper(), self.server.replies.get(verb))
            if reply == "close":
                return
            if reply == "hang":
                self.server.released.wait(30)
                return
            if reply is not None:
                self._say(reply)
            elif verb == "EHLO":
                lines = ["localhost", *self.server.features]
                self._say(
                    "\r\n".join([*(f"250-{line}" for line in lines[:-1]), f"250 {lines[-1]}"])
                )
            elif verb == "STARTTLS":
                self._say("220 go ahead")
                self._encrypt()
            elif verb == "AUTH":
                self._say("235 welcome")
            elif verb == "DATA":
                self._say("354 go on")
                self._read_mail()
            elif verb == "QUIT":
                self._say("221 goodbye")
                return
            else:
                self._say("250 ok")

    def _read_mail(self) -> None:
        lines = []
        while (line := self.rfile.readline()) not in {b".\r\n", b""}:
            lines.append(line.removeprefix(b"."))
        reply = self.server.replies.get(".", "250 queued")
        if reply.startswith("250"):
            self.server.mails.append(b"".join(lines))
        self._say(reply)

    def _encrypt(self) -> None:
        assert self.server.tls is not None
        self.rfile.close()
        self.request = self.connection = self.server.tls.wrap_socket(
            self.connection, server_side=True
        )
        self.rfile = self.connection.makefile("rb")

    def _say(self, reply: str) -> None:
        self.connection.sendall(f"{reply}\r\n".encode())

    def finish(self) -> None:
        super().finish()
        self.connection.close()


@contextmanager
def running(server: socketserver.BaseServer, released: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        released.set()
        server.shutdown()
        thread.join()
        server.server_close()
