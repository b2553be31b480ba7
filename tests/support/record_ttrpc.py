"""A shim that records: what containerd and its own runc shim say to each other, frame by frame.

tests/data/ttrpc/ was made with it. Installed as `containerd-shim-record-v2` (see support/containerd.py: write_shim)
it starts `containerd-shim-runc-v2`, puts a relay before the shim's socket and before containerd's, and appends what
passes to the file named by KATA_TEST_RECORD, one JSON object per chunk.
"""

import json
import os
import selectors
import socket
import subprocess
import sys
from typing import Any

REAL = "containerd-shim-runc-v2"


class Relay:
    """Two listening sockets and what they lead to; ends with its last connection."""

    def __init__(self, record: str) -> None:
        self.selector = selectors.DefaultSelector()
        self.record = record
        self.connections = 0

    def listen(self, path: str, target: str, name: str) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        self.selector.register(listener, selectors.EVENT_READ, ("listen", target, name))

    def run(self) -> None:
        idle = False
        while not idle:
            for key, _ in self.selector.select():
                kind, peer, name = key.data
                source: Any = key.fileobj
                if kind == "listen":
                    client, _ = source.accept()
                    server = socket.socket(socket.AF_UNIX)
                    server.connect(peer)
                    self.selector.register(client, selectors.EVENT_READ, ("client", server, name))
                    self.selector.register(server, selectors.EVENT_READ, ("server", client, name))
                    self.connections += 1
                    continue
                data = source.recv(1 << 16)
                if data:
                    with open(self.record, "a") as file:
                        print(json.dumps({"connection": name, "from": kind, "data": data.hex()}), file=file)
                    peer.sendall(data)
                    continue
                for end in (source, peer):
                    self.selector.unregister(end)
                    end.close()
                self.connections -= 1
                idle = self.connections == 0


def main() -> int:
    if sys.argv[-1] != "start":
        os.execvp(REAL, [REAL, *sys.argv[1:]])
    containerd = os.environ["TTRPC_ADDRESS"]
    events = os.path.realpath("record-events.sock")
    task = os.path.realpath("record-task.sock")
    environment = {**os.environ, "TTRPC_ADDRESS": events}
    relay = Relay(os.environ["KATA_TEST_RECORD"])
    relay.listen(events, containerd, "events")
    started = subprocess.run([REAL, *sys.argv[1:]], env=environment, stdout=subprocess.PIPE, check=True)
    relay.listen(task, started.stdout.decode().strip().removeprefix("unix://"), "task")
    if os.fork() == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        relay.run()
        os._exit(0)
    print(f"unix://{task}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
