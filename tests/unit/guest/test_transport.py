"""Ways into the guest, against stand-ins on unix sockets."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kata_runtime.errors import HostError
from kata_runtime.guest.relay import relay
from kata_runtime.guest.transport import HybridTransport, KernelTransport, Transport, be_patient
from kata_runtime.hypervisor.vsock import kernel as vhost_vsock
from support.fake_transport import FakeTransport


@contextlib.asynccontextmanager
async def backend(path: Path, answer: bytes, *, linger: bool = False) -> AsyncIterator[list[bytes]]:
    """Something that speaks (or does not speak) the hybrid convention; yields what it was asked."""
    asked: list[bytes] = []
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(answer)
        if linger:
            await done.wait()
        writer.close()

    async with await asyncio.start_unix_server(serve, path):
        yield asked
        done.set()


async def test_hybrid_connect(tmp_path: Path) -> None:
    async with backend(tmp_path / "v", b"OK 1234\nguest's own words\n") as asked:
        transport: Transport = HybridTransport(tmp_path / "v", tmp_path / "a")
        stream, host_port = await transport.connect(1027)
        with stream:
            assert (host_port, asked, stream.gettimeout()) == (1234, [b"CONNECT 1027\n"], 0)
            assert await asyncio.get_running_loop().sock_recv(stream, 100) == b"guest's own words\n"
    assert transport.grpc_address == f"unix:{tmp_path}/a"
    assert transport.kata_address == f"hvsock://{tmp_path}/v:1024"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(b"", "it was refused"), (b"HTTP/1.1 400\n", "no vsock backend"), (b"x" * 100, "no vsock backend")],
)
async def test_hybrid_refused(tmp_path: Path, answer: bytes, reason: str) -> None:
    async with backend(tmp_path / "v", answer):
        with pytest.raises(ConnectionRefusedError, match=f"guest port 1027 .*{reason}"):
            await HybridTransport(tmp_path / "v", tmp_path / "a").connect(1027)


async def test_hybrid_without_backend(tmp_path: Path) -> None:
    with pytest.raises(ConnectionRefusedError, match=r"port 1027 .*No such file"):
        await HybridTransport(tmp_path / "v", tmp_path / "a").connect(1027)


async def test_hybrid_without_answer(tmp_path: Path) -> None:
    async with backend(tmp_path / "v", b"OK 1", linger=True):
        with pytest.raises(TimeoutError, match=r"guest port 1027 did not answer in 0\.05 s"):
            await HybridTransport(tmp_path / "v", tmp_path / "a", timeout=0.05).connect(1027)


async def test_hybrid_waits_where_the_listeners_queue_is_full(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(str(tmp_path / "v"))
        listener.listen(0)
        first = stack.enter_context(socket.socket(socket.AF_UNIX))
        first.connect(str(tmp_path / "v"))
        connecting = asyncio.create_task(HybridTransport(tmp_path / "v", tmp_path / "a").connect(7))
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        for _ in range(2):
            peer, _ = await loop.sock_accept(listener)
            stack.enter_context(peer)
        await loop.sock_sendall(peer, b"OK 5\n")
        stream, host_port = await connecting
        with stream:
            assert host_port == 5


async def echo(stream: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with stream:
        while data := await loop.sock_recv(stream, 65536):
            await loop.sock_sendall(stream, data)
        await loop.sock_sendall(stream, b"the end")


class UnixKernelTransport(KernelTransport):
    """AF_VSOCK played by a socketpair whose other end echoes."""

    async def connect(self, port: int) -> tuple[socket.socket, int]:
        assert port == 1024
        ours, theirs = socket.socketpair()
        for each in (ours, theirs):
            each.setblocking(False)
        self.echo = asyncio.create_task(echo(theirs))
        return ours, 1


async def test_kernel_relay(tmp_path: Path) -> None:
    data = os.urandom(1 << 20)
    async with UnixKernelTransport.opened(5, tmp_path / "a") as transport:
        assert transport.kata_address == "vsock://5:1024"
        reader, writer = await asyncio.open_unix_connection(transport.grpc_address.removeprefix("unix:"))

        async def write() -> None:
            writer.write(data)
            writer.write_eof()
            await writer.drain()

        _, received = await asyncio.gather(write(), reader.read())
        assert received == data + b"the end"
        writer.close()
        await writer.wait_closed()
        await transport.echo
    assert not (tmp_path / "a").exists()


async def test_relay_ends_clients_that_it_can_not_serve(tmp_path: Path) -> None:
    async def dial() -> socket.socket:
        raise ConnectionRefusedError("no guest")

    async with relay(tmp_path / "a", dial):
        for _ in range(2):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "a")
            assert await reader.read() == b""
            writer.close()


async def test_relay_ends_connections_with_its_block_and_leaves_errors_alone(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        each.setblocking(False)

    async def dial() -> socket.socket:
        return ours

    async def block() -> None:
        async with relay(tmp_path / "a", dial):
            _, writers[0] = await asyncio.open_unix_connection(tmp_path / "a")
            writers[0].write(b"x")
            assert await asyncio.get_running_loop().sock_recv(theirs, 1) == b"x"
            raise LookupError("the block's own")

    writers: dict[int, asyncio.StreamWriter] = {}
    with theirs:
        with pytest.raises(LookupError, match="the block's own"):
            await block()
        assert await asyncio.get_running_loop().sock_recv(theirs, 1) == b""
    writers[0].close()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENODEV, os.strerror(errno.ENODEV)), "No such device"),
        (
            ConnectionResetError(errno.ECONNRESET, "Connect call failed (5, 1027)"),
            "Connection reset by peer",
        ),  # asyncio's
    ],
)
async def test_kernel_connect_needs_a_guest(
    error: OSError, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = KernelTransport(5, tmp_path / "a")
    monkeypatch.setattr(transport, "_socket", lambda: socket.socket(socket.AF_UNIX, type=socket.SOCK_STREAM))

    async def refuse(_stream: socket.socket, address: tuple[int, int]) -> None:
        assert address == (5, 1027)
        raise error

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", refuse)
    with pytest.raises(ConnectionRefusedError, match=rf"guest port 1027 can't be reached \(CID 5\): {words}"):
        await transport.connect(1027)


def test_a_socket_of_python_takes_the_kernels_option() -> None:
    """Its AF_VSOCK sockets would raise TypeError. This one is none but for Python, so the kernel does not know it."""
    ours, theirs = socket.socketpair()
    stream = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM, 0, fileno=ours.detach())
    with theirs, stream, pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
        be_patient(stream, 30.0)


async def test_fake_transport() -> None:
    async def guest(stream: socket.socket, host_port: int) -> None:
        await asyncio.get_running_loop().sock_sendall(stream, b"%d" % host_port)

    async with FakeTransport({1027: guest}) as fake:
        transport: Transport = fake
        stream, host_port = await transport.connect(1027)
        with stream:
            assert await asyncio.get_running_loop().sock_recv(stream, 20) == b"%d" % host_port
        with pytest.raises(ConnectionRefusedError, match="guest port 9"):
            await transport.connect(9)


def test_reserve_cid_goes_on_until_one_is_free() -> None:
    tried: list[int] = []

    def set_cid(_fd: int, cid: int) -> None:
        tried.append(cid)
        if len(tried) < 4:
            raise OSError(errno.EADDRINUSE, "taken")

    cid, fd = vhost_vsock.reserve_cid(Path("/dev/null"), set_cid=set_cid)
    os.close(fd)
    assert cid == tried[-1]
    assert len(set(tried)) == 4
    assert all(3 <= each < 2**32 - 1 for each in tried)


@pytest.mark.parametrize(
    ("device", "error", "message"),
    [
        ("/dev/null", errno.EADDRINUSE, "no free context id"),
        ("/dev/null", errno.EFAULT, "refuses context id"),
        ("/nowhere", 0, r"/nowhere can't be opened: No such file"),
        ("/dev/null", None, "refuses context id .*Inappropriate ioctl"),
    ],
)
def test_reserve_cid_errors(device: str, error: int | None, message: str) -> None:
    def set_cid(_fd: int, _cid: int) -> None:
        assert error is not None
        raise OSError(error, os.strerror(error))

    with pytest.raises(HostError, match=message):
        vhost_vsock.reserve_cid(Path(device), set_cid=None if error is None else set_cid)


def test_available(tmp_path: Path) -> None:
    assert vhost_vsock.available(Path("/dev/null"))
    assert not vhost_vsock.available(tmp_path / "vhost-vsock")
