"""One process of the pool: clones a guest, rehearses with it, and waits to be what somebody wants to start.

`python -m kata_runtime.member`: stdin is one JSON object.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from kata_common.documents import parse_json
from kata_runtime import birth, loop
from kata_runtime.config.load import config_from_json
from kata_runtime.config.model import Config
from kata_runtime.errors import KataError
from kata_runtime.guest.transport import readable
from kata_runtime.mount import private_mount_namespace
from kata_runtime.pool import wire
from kata_runtime.sandbox.template import spare
from kata_runtime.sandbox.template.maker import ready_clone

__all__ = ["main"]

_log = logging.getLogger("kata.pool")

# A member's pace while nobody waits for it.
_NICE = 10
# Seconds between two signals, which would be one otherwise.
_MOMENT = 0.2
# All that the taker wanted is done.
_over = threading.Event()


def main() -> NoReturn:
    """Be a member until it has been taken and its work is done, or nobody wants it."""
    given = parse_json(sys.stdin.read())
    control = socket.socket(fileno=given["control"])
    os.set_inheritable(control.fileno(), False)
    namespace = os.readlink("/proc/self/ns/mnt")  # noqa: PTH115 - a name of the kernel's
    private_mount_namespace()
    status = 1
    try:
        events = loop.prepare()
        config, image_dir = config_from_json(given["config"]), Path(given["image_dir"])
        taken = events.run_until_complete(_wait(config, image_dir, control, namespace))
        if taken is not None:
            status = _serve(*taken)
    except KataError as error:
        _log.warning("no clone for the pool: %s", error)
    except Exception:
        _log.exception("a member of the pool failed")
    finally:
        # What is left ends with its sockets and with us; what is in /run goes with the next start.
        with suppress(Exception):
            loop.run(spare.discard())
        os._exit(status)


async def _wait(
    config: Config, image_dir: Path, control: socket.socket, namespace: str
) -> tuple[socket.socket, dict[str, Any], list[int]] | None:
    """Get ready, say so, and wait: who takes us, what for, and its files; None where nobody does."""
    os.nice(_NICE)
    preparing = asyncio.create_task(ready_clone(config, image_dir, f"pool-{os.getpid()}"))
    unwanted = asyncio.create_task(readable(control))
    await asyncio.wait({preparing, unwanted}, return_when=asyncio.FIRST_COMPLETED)
    unwanted.cancel()
    if not preparing.done():
        preparing.cancel()
        await asyncio.wait({preparing})
        return None
    kept = preparing.result()
    spare.keep(kept)
    _import_all()
    for group in (0, kept.vm.machine.pid, *(child.pid for child in kept.vm.helpers)):
        # Each is the first of a group of its own, threads included.
        os.setpriority(os.PRIO_PGRP, group, 0)
    control.setblocking(False)
    wire.send(control, {"ready": True})
    ended = asyncio.create_task(kept.vm.machine.wait())
    while True:
        asked = asyncio.create_task(readable(control))
        await asyncio.wait({asked, ended}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            asked.cancel()
            return None
        message, files = wire.receive_with_files(control)
        if message is None or not files:
            return None  # the server has gone, or has no use for us
        client = socket.socket(fileno=files.pop())
        client.setblocking(False)
        wire.send(client, {"here": os.getpid()})
        try:
            await asyncio.wait_for(readable(client), 1)
            request, files = wire.receive_with_files(client)
        except (OSError, TimeoutError):
            request, files = None, []
        if request is not None and request.get("namespace") == namespace and wire.send(client, {"taken": os.getpid()}):
            ended.cancel()
            control.close()
            client.setblocking(True)
            return client, request, files
        wire.send(client, {"taken": 0})
        client.close()
        for fd in files:
            os.close(fd)
        wire.send(control, {"ready": True})


def _import_all() -> None:
    """What a start would import."""
    import kata_runtime.cli.run
    import kata_runtime.guest.agent
    import kata_runtime.sandbox.management
    import kata_runtime.shim.daemon
    import kata_runtime.shim.pooled
    import kata_runtime.shim.start
    import kata_runtime.shim.tasks  # noqa: F401


def _serve(client: socket.socket, request: Mapping[str, Any], files: list[int]) -> int:
    os.environ.clear()
    os.environ.update(request["environment"])
    birth.born(int(request["started"]))
    return _be_shim(client, request, files) if request.get("do") == "shim" else _be_run(client, request, files)


def _be_shim(client: socket.socket, request: Mapping[str, Any], files: list[int]) -> int:
    """The daemon that `start` would have made; it outlives who asked."""
    from kata_runtime.shim import daemon, tasks
    from kata_runtime.shim.pooled import launch_of
    from kata_runtime.shim.start import redirect

    client.close()
    launch = launch_of(request["launch"])
    launch.forked = time.monotonic_ns()
    os.chdir(launch.bundle)
    redirect(launch)
    return daemon.main(launch, socket.socket(fileno=files[0]), tasks.open_service)


def _be_run(client: socket.socket, request: Mapping[str, Any], files: list[int]) -> int:
    """The command that somebody has given, on his streams and in his directory."""
    threading.Thread(target=_follow, args=(client,), name="client", daemon=True).start()
    streams, directory = files[:3], files[3]
    for target, fd in enumerate(streams):
        os.dup2(fd, target)
    os.fchdir(directory)
    for fd in files:
        os.close(fd)
    from kata_runtime.cli.main import main as command

    try:
        status = command(request["argv"])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    with suppress(Exception):
        loop.run(spare.discard())  # what was asked for was another guest than ours
    _over.set()
    wire.send(client, {"status": status})
    return status


def _follow(client: socket.socket) -> None:
    """Signals of whoever has taken us are ours, and so is its end."""
    while (message := wire.receive(client)) is not None:
        with suppress(ValueError, TypeError, OSError):
            os.kill(os.getpid(), int(message["signal"]))
    if _over.is_set():
        return
    # It was killed, and its VM would have ended with it. The second time the runtime takes no excuse.
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_MOMENT)


if __name__ == "__main__":
    main()
