"""What runs in a container of the stdio benchmark: one program that moves bytes by every way that is compared.

Standard library only; it is copied into the container. A client connects to AF_VSOCK port argv[1], or to TCP port
argv[2] where there is one, and says `VERB SIZE` in a line:

    source, sink, echo    over that connection, as raw as a stream can be had
    stdout, stdin, cat    the same by this process's stdio

Each moves SIZE bytes in pieces of 64 KiB, and says "." when it is done (on a way that it doesn't move bytes over).
"""

import os
import select
import socket
import sys

BLOCK = 65536
_buffer = memoryview(bytearray(BLOCK))


def write(fd: int, size: int) -> None:
    """Zeros."""
    block = memoryview(bytes(BLOCK))
    while size:
        size -= os.write(fd, block[: min(size, BLOCK)])


def read(fd: int, size: int) -> None:
    """Anything."""
    while size:
        count = os.readv(fd, (_buffer,))
        if not count:
            raise SystemExit(f"input ended {size} bytes early")
        size -= count


def copy(source: int, sink: int, size: int) -> None:
    """What comes in goes out."""
    while size:
        count = os.readv(source, (_buffer,))
        if not count:
            raise SystemExit(f"input ended {size} bytes early")
        size -= count
        rest = _buffer[:count]
        while rest:
            rest = rest[os.write(sink, rest) :]


def serve(peer: socket.socket) -> None:
    """One request."""
    line = b""
    while not line.endswith(b"\n"):
        line += peer.recv(1)
    verb, number = line.decode().split()
    size, stream = int(number), peer.fileno()
    match verb:
        case "source":
            write(stream, size)
        case "sink":
            read(stream, size)
        case "echo":
            copy(stream, stream, size)
        case "stdout":
            write(1, size)
        case "stdin":
            read(0, size)
        case "cat":
            copy(0, 1, size)
    if verb not in ("source", "echo"):
        os.write(stream, b".")


def main() -> None:
    """Serve until killed, one client after the other; "ready" on stderr."""
    vsock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    vsock.bind((0xFFFFFFFF, int(sys.argv[1])))
    vsock.listen()
    listeners = [vsock]
    if len(sys.argv) > 2:
        listeners.append(socket.create_server(("", int(sys.argv[2]))))
    os.write(2, b"ready\n")
    while True:
        for listener in select.select(listeners, (), ())[0]:
            peer, _ = listener.accept()
            with peer:
                serve(peer)


if __name__ == "__main__":
    main()
