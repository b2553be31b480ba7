"""`run -p`: a port of the host leads to the container's, without any network."""

import socket
import subprocess
import urllib.request

import pytest

from support.kata import Kata

pytestmark = pytest.mark.vm


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number: int = server.getsockname()[1]
        return number


def test_a_server_in_a_container_is_reached(kata: Kata) -> None:
    port, closed = free_port(), free_port()
    script = "mkdir /tmp/w; echo from inside >/tmp/w/index.html; httpd -p 80 -h /tmp/w; echo up; cat; true"
    options = ("-i", "-p", f"127.0.0.1:{port}:80", "-p", f"127.0.0.1:{closed}:81")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with kata.start("run", *options, "--", "sh", "-c", script, **pipes) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"up\n", child.stderr.read() if child.stderr else b""
            for _ in range(3):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
                    assert answer.read() == b"from inside\n"
            # Nobody listens there: the connection is reset, not left open.
            with socket.create_connection(("127.0.0.1", closed), timeout=20) as client, pytest.raises(ConnectionError):
                client.recv(1)
            # The same port cannot be had twice, and no guest boots for that.
            again = kata("run", "-p", f"127.0.0.1:{port}:80", "--", "true")
            assert again.returncode == 125
            assert f"port 127.0.0.1:{port} can't be published".encode() in again.stderr
        finally:
            child.communicate(timeout=60)
    assert child.returncode == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
