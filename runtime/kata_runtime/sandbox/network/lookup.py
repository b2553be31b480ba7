"""Connections to a network namespace's localhost, given to one listener whatever their port: BPF's sk_lookup.

The kernel runs the program where a packet begins a connection and asks for its listener (Linux 5.9,
Documentation/bpf/prog_sk_lookup.rst). Program, map and link have no names: they end with the descriptor of the link.
Constants are those of linux/bpf.h, the encoding of instructions that of Documentation/bpf/standardization.
"""

import ctypes
import os
import socket
import struct
import sys

from kata_common.linux import bpf
from kata_runtime.errors import HostError

__all__ = ["program", "steer_localhost"]

_MAP_CREATE, _MAP_UPDATE, _PROG_LOAD, _LINK_CREATE = 0, 2, 5, 28
_MAP_TYPE_SOCKMAP, _PROG_TYPE_SK_LOOKUP, _ATTACH_SK_LOOKUP = 15, 30, 36
# Helpers by number (__BPF_FUNC_MAPPER).
_LOOKUP_ELEM, _SK_RELEASE, _SK_ASSIGN = 1, 86, 124
# Offsets in struct bpf_sk_lookup.
_FAMILY, _PROTOCOL, _LOCAL_IP4, _LOCAL_IP6 = 8, 12, 40, 44
_PASS = 1


def steer_localhost(namespace: int, listener: socket.socket) -> int:
    """Let `listener` take all TCP connections to localhost in the namespace (a descriptor), whoever else listens there.

    Returns the descriptor that keeps it so; the caller closes it.

    Raises:
        HostError: the kernel can't do it.
    """
    opened: list[int] = []
    try:
        listeners = bpf(_MAP_CREATE, struct.pack("=IIII", _MAP_TYPE_SOCKMAP, 4, 4, 1))
        opened.append(listeners)
        key, value = ctypes.create_string_buffer(4), ctypes.create_string_buffer(struct.pack("=I", listener.fileno()))
        bpf(_MAP_UPDATE, struct.pack("=IIQQQ", listeners, 0, ctypes.addressof(key), ctypes.addressof(value), 0))
        loaded = _load(program(listeners))
        opened.append(loaded)
        return bpf(_LINK_CREATE, struct.pack("=IIII", loaded, namespace, _ATTACH_SK_LOOKUP, 0))
    except OSError as error:
        raise HostError(
            f"connections to the pod's localhost can't be steered to the guest: {error.strerror}",
            hint="this needs Linux 5.9 with CONFIG_BPF_SYSCALL, and CAP_BPF and CAP_NET_ADMIN, or root",
        ) from error
    finally:
        for descriptor in opened:
            os.close(descriptor)  # the link holds what it needs


def program(listeners: int) -> bytes:
    """The program for a map (a descriptor) whose first entry is the listener.

    TCP to 127.0.0.0/8 or ::1 is given to it, anything else passes.
    """
    first_octet = 0xFF if sys.byteorder == "little" else -0x0100_0000
    loopback4 = 127 if sys.byteorder == "little" else 127 << 24
    one = int.from_bytes(b"\0\0\0\1", sys.byteorder)
    code = _Assembler()
    code.add(0xBF, 6, 1)  # r6 = context
    code.add(0x61, 2, 6, _PROTOCOL)
    code.jump(0x55, 2, socket.IPPROTO_TCP, "pass")  # unless equal
    code.add(0x61, 2, 6, _FAMILY)
    code.jump(0x15, 2, socket.AF_INET, "IPv4")
    code.jump(0x55, 2, socket.AF_INET6, "pass")
    for word, wanted in enumerate((0, 0, 0, one)):
        code.add(0x61, 2, 6, _LOCAL_IP6 + 4 * word)
        code.jump(0x55, 2, wanted, "pass")
    code.jump(0x05, 0, 0, "take")
    code.label("IPv4")
    code.add(0x61, 2, 6, _LOCAL_IP4)
    code.add(0x54, 2, 0, 0, first_octet)  # w2 &= …
    code.jump(0x55, 2, loopback4, "pass")
    code.label("take")
    code.add(0x62, 10, 0, -4, 0)  # key 0, on the stack
    code.add(0xBF, 2, 10)
    code.add(0x07, 2, 0, 0, -4)
    code.add(0x18, 1, 1, 0, listeners)  # r1 = map, in two instructions
    code.add(0)
    code.add(0x85, 0, 0, 0, _LOOKUP_ELEM)
    code.jump(0x15, 0, 0, "pass")
    code.add(0xBF, 7, 0)
    code.add(0xBF, 1, 6)
    code.add(0xBF, 2, 7)
    code.add(0xB7, 3)
    code.add(0x85, 0, 0, 0, _SK_ASSIGN)
    code.add(0xBF, 1, 7)
    code.add(0x85, 0, 0, 0, _SK_RELEASE)
    code.label("pass")
    code.add(0xB7, 0, 0, 0, _PASS)
    code.add(0x95)
    return code.assemble()


class _Assembler:
    """Instructions of eight bytes: operation, registers, offset, immediate value; jumps forward to labels."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, int, int, int | str, int]] = []
        self._labels: dict[str, int] = {}

    def add(self, operation: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> None:
        self._lines.append((operation, target, source, offset, value))

    def jump(self, operation: int, register: int, value: int, label: str) -> None:
        self._lines.append((operation, register, 0, label, value))

    def label(self, name: str) -> None:
        self._labels[name] = len(self._lines)

    def assemble(self) -> bytes:
        code = bytearray()
        for at, (operation, target, source, offset, value) in enumerate(self._lines):
            distance = self._labels[offset] - at - 1 if isinstance(offset, str) else offset
            registers = source << 4 | target if sys.byteorder == "little" else target << 4 | source
            code += struct.pack("=BBhi", operation, registers, distance, value)
        return bytes(code)


def _load(code: bytes) -> int:
    instructions, license_ = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"Apache-2.0")
    head = struct.pack(
        "=IIQQIIQII16s", _PROG_TYPE_SK_LOOKUP, len(code) // 8, ctypes.addressof(instructions),
        ctypes.addressof(license_), 0, 0, 0, 0, 0, b"kata_localhost"
    )  # fmt: skip
    return bpf(_PROG_LOAD, head + struct.pack("=II", 0, _ATTACH_SK_LOOKUP))
