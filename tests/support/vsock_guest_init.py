"""What runs in the guest of the vsock backend's VM test, as Python under busybox' init script. Standard library only.

Ports: 5001 echo; 5002 reads to the end of file, then answers with count and SHA-256; 5003 sends as many bytes as eight
bytes (big-endian) ask for; 5004 executes Python that it reads to the end of file, and answers with its `result`.
"""

import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable
from typing import Any

BLOCK = 65536


def echo(peer: socket.socket) -> None:
    """Everything comes back."""
    while data := peer.recv(BLOCK):
        peer.sendall(data)


def digest(peer: socket.socket) -> None:
    """Count and SHA-256 of everything, when it has ended."""
    total, checksum = 0, hashlib.sha256()
    while data := peer.recv(BLOCK):
        total += len(data)
        checksum.update(data)
    peer.sendall(f"{total} {checksum.hexdigest()}".encode())


def count(peer: socket.socket) -> None:
    """How many bytes came, when they have ended."""
    total, buffer = 0, bytearray(BLOCK)
    while size := peer.recv_into(buffer):
        total += size
    peer.sendall(b"%d" % total)


def source(peer: socket.socket) -> None:
    """As many bytes as asked for."""
    left = int.from_bytes(peer.recv(8, socket.MSG_WAITALL), "big")
    block = memoryview(bytes(range(256)) * (BLOCK // 256))
    while left:
        peer.sendall(block[: min(left, BLOCK)])
        left -= min(left, BLOCK)


def execute(peer: socket.socket) -> None:
    """Run what the host says."""
    code = b""
    while data := peer.recv(BLOCK):
        code += data
    scope: dict[str, Any] = {"result": None}
    try:
        exec(code, scope)
        answer = repr(scope["result"])
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    peer.sendall(answer.encode())


def serve(peer: socket.socket, service: Callable[[socket.socket], None]) -> None:
    """One connection."""
    with peer, contextlib.suppress(OSError):
        service(peer)


def accept(listener: socket.socket, service: Callable[[socket.socket], None]) -> None:
    """All connections of one port."""
    while True:
        peer, _ = listener.accept()
        threading.Thread(target=serve, args=(peer, service), daemon=True).start()


def main() -> None:
    """Listen on all ports, also before there is a device, and say so on the console."""
    services = {5001: echo, 5002: digest, 5003: source, 5004: execute, 5005: count}
    for port, service in services.items():
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        listener.bind((socket.VMADDR_CID_ANY, port))
        listener.listen(256)
        threading.Thread(target=accept, args=(listener, service), daemon=True).start()
    print("guest: ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
