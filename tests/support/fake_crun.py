#!/usr/bin/env python3
"""Stands in for crun where tests have no root: same command line, files and words, no isolation at all.

`create` leaves a process that waits at a fifo, `start` opens it, `exec` leaves a process; both are orphans for the
nearest subreaper, as crun's are. The words are those of crun 1.8.1.
"""

import argparse
import array
import json
import os
import pty
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn


def fail(options: argparse.Namespace, text: str, status: int = 1) -> NoReturn:
    line = json.dumps({"msg": text, "level": "error", "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
    with open(options.log, "a") as log:
        log.write(line + "\n")
    sys.exit(status)


def check(options: argparse.Namespace, process: dict[str, Any]) -> str:
    command = process["args"][0]
    path = next((e[5:] for e in process.get("env", []) if e.startswith("PATH=")), os.defpath)
    found = shutil.which(command, os.F_OK, path) or (command if Path(command).exists() else None)
    if not found:
        fail(options, f"executable file `{command}` not found in $PATH: No such file or directory")
    if not os.access(found, os.X_OK) or Path(found).is_dir():
        fail(options, "open executable: Permission denied")
    return str(found)


def run(options: argparse.Namespace, process: dict[str, Any], fifo: Path | None) -> None:
    """Leave a process behind and write its pid."""
    program = check(options, process)
    ready, done = os.pipe()
    master = slave = -1
    if process.get("terminal"):
        master, slave = pty.openpty()
    pid = os.fork()
    if pid == 0:
        os.close(ready)
        os.setsid()
        if slave >= 0:
            os.close(master)
            login(slave)
        os.write(done, b".")
        os.close(done)
        if fifo:
            # As crun's init: opened for writing here, read by `start`.
            with open(fifo, "rb") as gate:
                gate.read(1)
        try:
            os.chdir(process.get("cwd", "/"))
            os.execve(program, process["args"], dict(e.split("=", 1) for e in process.get("env", [])))
        except OSError as error:
            fail(options, f"exec container process `{program}`: {error.strerror}")
    os.close(done)
    os.read(ready, 1)
    if master >= 0:
        with socket.socket(socket.AF_UNIX) as console:
            console.connect(options.console_socket)
            console.sendmsg([b"tty"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [master]))])
    Path(options.pid_file).write_text(str(pid))


def login(slave: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for fd in (0, 1, 2):
        os.dup2(slave, fd)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--root", "--log", "--log-format", "--cgroup-manager"):
        parser.add_argument(name)
    parser.add_argument("command")
    for name in ("--bundle", "--pid-file", "--console-socket", "--process", "--resources"):
        parser.add_argument(name)
    parser.add_argument("--detach", action="store_true")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("id")
    options = parser.parse_args()
    home = Path(options.root, options.id)
    match options.command:
        case "create":
            home.mkdir(parents=True)
            try:
                process = json.loads(Path(options.bundle, "config.json").read_text())["process"]
                os.mkfifo(home / "exec.fifo")
                run(options, process, home / "exec.fifo")
                (home / "pid").write_text(Path(options.pid_file).read_text())
            except SystemExit:
                shutil.rmtree(home)
                raise
        case "start":
            with open(home / "exec.fifo", "wb") as gate:
                gate.write(b"\0")
        case "exec":
            run(options, json.loads(Path(options.process).read_text()), None)
        case "pause" | "resume":
            pid = int((home / "pid").read_text())
            os.kill(pid, signal.SIGSTOP if options.command == "pause" else signal.SIGCONT)
        case "update":
            (home / "resources").write_text(Path(options.resources).read_text())
        case "delete":
            if not home.exists() and not options.force:
                fail(options, f"container `{options.id}` does not exist")
            shutil.rmtree(home, ignore_errors=True)
        case other:
            fail(options, f"unknown command {other}")


main()
