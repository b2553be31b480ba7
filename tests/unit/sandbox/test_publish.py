"""Ports that are published: how they are written, and that they are the host's while it lasts."""

import argparse
import socket

import pytest

from kata_runtime.cli import options
from kata_runtime.errors import HostError
from kata_runtime.sandbox.network.publish import Publication, listening


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("8080:80", Publication("", 8080, 80)),
        ("8080:80/tcp", Publication("", 8080, 80)),
        ("127.0.0.1:8080:80", Publication("127.0.0.1", 8080, 80)),
        ("[::1]:8080:80", Publication("::1", 8080, 80)),
        ("0:80", Publication("", 0, 80)),
    ],
)
def test_what_is_a_port(text: str, port: Publication) -> None:
    assert options.published(text) == port


@pytest.mark.parametrize(
    "text",
    ["", "80", ":80", "80:", "8080:80/udp", "65536:80", "80:0", "80:65536", "-1:80", "x:1:2", "host:80:80", "1:2:3:4",
     "٣:80", "8080:80/tcp/udp", "9999999999:1"],
)  # fmt: skip
def test_what_is_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        options.published(text)


def test_a_port_is_ours_while_it_lasts() -> None:
    with listening([Publication("127.0.0.1", 0, 80)]) as (published,):
        port = published.listener.getsockname()[1]
        assert str(published) == f"127.0.0.1:{port} -> 80"
        # Before anything serves a connection waits.
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        with (
            pytest.raises(HostError, match=f"port 127.0.0.1:{port} can't be published"),
            listening([Publication("127.0.0.1", port, 81)]),
        ):
            pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_port_that_is_taken_lets_go_of_the_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        with (
            pytest.raises(HostError),
            listening([Publication("127.0.0.1", 0, 80), Publication("127.0.0.1", taken, 80)]),
        ):
            pass
