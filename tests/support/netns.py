"""Network namespaces of a test's own: pods, and a "host" that they are wired to; never the machine's own network.

Needs root and iproute2.
"""

import contextlib
import itertools
import json
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from kata_runtime.sandbox.network.namespace import Namespace

__all__ = ["Netns", "made"]

T = TypeVar("T")
_numbers = itertools.count(1)


class Netns:
    """A named network namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = Path("/run/netns") / name

    @property
    def prefix(self) -> tuple[str, ...]:
        """What runs a command in it. Not `ip netns exec`, which would hide the command's mounts from the host."""
        return ("nsenter", f"--net={self.path}", "--")

    def ip(self, command: str) -> str:
        """`ip COMMAND` in it."""
        return _run("ip", "-n", self.name, *shlex.split(command))

    def tc(self, command: str) -> str:
        """`tc COMMAND` in it."""
        return _run("tc", "-n", self.name, *shlex.split(command))

    def json(self, command: str) -> list[dict[str, Any]]:
        """What `ip COMMAND` tells."""
        found: list[dict[str, Any]] = json.loads(_run("ip", "-n", self.name, "-json", *shlex.split(command)) or "[]")
        return found

    def inside(self, work: Callable[[], T]) -> T:
        """Do something in it: sockets that are made there stay there."""
        with Namespace.at(str(self.path)) as namespace:
            return namespace.run_now(work)

    @contextlib.contextmanager
    def listening(self, address: str) -> Iterator[tuple[int, Future[bytes]]]:
        """A TCP server for one connection: its port, and what it hears until the first line's end."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def serve() -> bytes:
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as lines:
                return lines.readline()

        with self.inside(lambda: socket.create_server((address, 0), family=family)) as server:
            server.settimeout(60)
            with ThreadPoolExecutor(1) as pool:
                yield server.getsockname()[1], pool.submit(serve)

    def ask(self, address: str, port: int, request: bytes, timeout: float = 30) -> bytes:
        """What a TCP server answers, which may only be starting."""
        deadline = time.monotonic() + timeout

        def connect() -> socket.socket:
            while True:
                try:
                    return socket.create_connection((address, port), timeout)
                except ConnectionRefusedError:
                    assert time.monotonic() < deadline, f"nobody listens at {address}:{port}"
                    time.sleep(0.05)  # nothing tells when a server in a guest listens

        with self.inside(connect) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
        return b"".join(parts)

    def state(self) -> dict[str, list[Any]]:
        """Links, addresses and routes, without what the kernel does to them by itself."""
        return {
            "links": [(link["ifname"], link["mtu"], link["address"]) for link in self.json("link")],
            "addresses": [
                (link["ifname"], entry["local"], entry["prefixlen"])
                for link in self.json("addr")
                for entry in link["addr_info"]
            ],
            "routes": [tuple(sorted(map(str, route.items()))) for route in self.json("route") + self.json("-6 route")],
        }

    def traces(self) -> list[str]:
        """What the runtime may not leave in it: its taps, and qdiscs."""
        links = [link["ifname"] for link in self.json("link") if link["ifname"].endswith("_kata")]
        qdiscs = [line for line in self.tc("qdisc").splitlines() if "ingress" in line]
        return links + qdiscs


@contextlib.contextmanager
def made(count: int = 1) -> Iterator[list[Netns]]:
    """New namespaces with nothing in them, gone afterwards."""
    names = [f"kata-test-{os.getpid()}-{next(_numbers)}" for _ in range(count)]
    try:
        for name in names:
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        yield [Netns(name) for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"
    return done.stdout
