"""Stand-ins for the tools that the image build runs, and small inputs in the real formats."""

import ctypes
import struct
from pathlib import Path

# Debian's essential packages depend on it, so that every host has it.
LIBLZ4 = "liblz4.so.1"


class Tools:
    """Programs on a PATH of their own; each appends its command line to a log."""

    def __init__(self, directory: Path, monkeypatch_path: str) -> None:
        self.directory = directory
        self.log = directory / "log"
        directory.mkdir()
        self.path = f"{directory}:{monkeypatch_path}"

    def add(self, name: str, script: str = "") -> None:
        """A shell script that logs its call and then does `script`."""
        program = self.directory / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >>"{self.log}"\n{script}\n')
        program.chmod(0o755)

    def calls(self, name: str = "") -> list[str]:
        """The calls so far, all or those of one tool."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line.startswith(name)]


def kernel_module(**info: str) -> bytes:
    """What of a kernel module the build looks at: .modinfo, the name of the BTF section, the signature."""
    modinfo = b"".join(f"{key}={value}".encode() + b"\0" for key, value in info.items())
    signature = b"s" * 99
    trailer = struct.pack(">8xI", len(signature))
    return b"\x7fELF\0" + modinfo + b"\0.BTF\0.text\0" + signature + trailer + b"~Module signature appended~\n"


def bzimage(kernel: bytes) -> bytes:
    """A kernel image whose payload is `kernel`, compressed as Debian's cloud kernel is."""
    library = ctypes.CDLL(LIBLZ4)
    target = ctypes.create_string_buffer(len(kernel) + 1024)
    size = library.LZ4_compress_default(kernel, target, len(kernel), len(target))
    payload = struct.pack("<II", 0x184C2102, size) + target.raw[:size] + struct.pack("<I", len(kernel))
    setup = bytearray(1024)
    setup[0x1F1] = 1
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", setup, 0x248, 64, len(payload))
    return bytes(setup) + bytes(64) + payload
