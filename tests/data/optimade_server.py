"""The reference OPTIMADE server on a loopback port, which it prints: it keeps a log, fails on order, and calls nobody.

`/_plan?match=<text>&status=<code>&times=<n>` makes the next n requests whose query has the text fail with that status
(status 200: answer with what is no page; 0: never answer). `/_asked` gives the queries so far, and forgets them.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from urllib.parse import parse_qs, unquote

import uvicorn

connect = socket.socket.connect


def only_loopback(self, address):
    if self.family != socket.AF_UNIX and address[0] != "127.0.0.1":
        print("called", address, file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)  # the tests will notice
    return connect(self, address)


class OnOrder:
    """ASGI middleware."""

    def __init__(self, app):
        self.app, self.plans, self.asked = app, [], []

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        query = unquote(scope["query_string"].decode())
        if scope["path"] == "/_plan":
            self.plans.append({key: value[0] for key, value in parse_qs(query).items()})
            await answer(send, 200, b"{}")
        elif scope["path"] == "/_asked":
            asked, self.asked = self.asked, []
            await answer(send, 200, json.dumps(asked).encode())
        else:
            self.asked.append(query)
            for plan in self.plans:
                if plan["match"] in query and int(plan["times"]) > 0:
                    plan["times"] = int(plan["times"]) - 1
                    if plan["status"] == "0":
                        await asyncio.sleep(3600)
                    await answer(send, int(plan["status"]), b"<html>busy</html>")
                    return
            await self.app(scope, receive, send)


async def answer(send, status, body):
    headers = [(b"retry-after", b"0")] if status == 429 else []  # with it, others would be asked again by default
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    socket.socket.connect = only_loopback
    from optimade.server.main import app  # reads OPTIMADE_CONFIG_FILE

    listener = socket.create_server(("127.0.0.1", 0))
    print(f"port {listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(OnOrder(app), log_level="warning")).run(sockets=[listener])
