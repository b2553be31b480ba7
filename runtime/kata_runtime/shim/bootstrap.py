"""What `start` gets on stdin and answers on stdout, without protobuf (its import alone would double `start`'s time).

| containerd | stdin                                     | answer                              |
|------------|-------------------------------------------|-------------------------------------|
| 1.6        | nothing, or an Any with runtime options   | the address                         |
| 1.7 to 2.2 | the same                                  | the address, or JSON                |
| 2.3 on     | BootstrapParams, options among extensions | the address, JSON, or a protobuf    |

So: JSON with version 3 to who sent BootstrapParams, else the plain address, which means version 2 everywhere. Numbers
are from containerd's api/runtime/bootstrap/v1/bootstrap.proto, the fallbacks from parseStartResponse in
core/runtime/v2/shim.go. An Any may parse as BootstrapParams and the other way round; id and namespace, which are on
the command line too, tell them apart (containerd pkg/shim/compat.go does the same).
"""

from collections.abc import Iterator

from kata_runtime.shim.arguments import UsageError

__all__ = ["MAX_INPUT", "Bootstrap", "encode_delete_response", "parse_input", "reply"]

# containerd's own shims read no more either (pkg/shim/shim.go).
MAX_INPUT = 10 << 20

# LogLevel in bootstrap.proto.
_LOG_LEVEL_DEBUG = -4


class Bootstrap:
    """What was said on stdin. `options` are the Any messages in it: type URL and bytes."""

    __slots__ = ("debug", "options", "parameters", "socket_dir", "ttrpc_address", "version")

    def __init__(self) -> None:
        self.parameters = False
        self.debug = False
        self.ttrpc_address = ""
        self.socket_dir = ""
        self.version = ""
        self.options: list[tuple[str, bytes]] = []


def parse_input(data: bytes, *, container_id: str, namespace: str) -> Bootstrap:
    """Understand what came on stdin.

    Raises:
        UsageError: it is neither BootstrapParams for this container nor an Any.
    """
    found = Bootstrap()
    if not data:
        return found
    try:
        fields = list(_fields(data))
        if _text(fields, 1) == container_id and _text(fields, 2) == namespace:
            _read_parameters(found, fields)
        else:
            found.options.append(_read_any(fields))
    except ValueError as error:
        what = f"neither runtime options nor bootstrap parameters of {container_id}"
        raise UsageError(f"{len(data)} bytes on stdin are {what}: {error}") from error
    return found


def _read_parameters(found: Bootstrap, fields: "list[tuple[int, int | bytes]]") -> None:
    found.parameters = True
    for number, value in fields:
        if number == 3 and isinstance(value, int):
            found.debug = _signed(value) <= _LOG_LEVEL_DEBUG
        elif number == 8 and isinstance(value, bytes):
            for key, option in _fields(value):
                if key == 1 and isinstance(option, bytes):
                    found.options.append(_read_any(list(_fields(option))))
    found.version = _text(fields, 4)
    found.ttrpc_address = _text(fields, 5)
    found.socket_dir = _text(fields, 9)


def _read_any(fields: "list[tuple[int, int | bytes]]") -> tuple[str, bytes]:
    kind = _text(fields, 1)
    if not kind:
        raise ValueError("there is no type URL")
    return kind, next((value for number, value in fields if number == 2 and isinstance(value, bytes)), b"")


def _text(fields: "list[tuple[int, int | bytes]]", wanted: int) -> str:
    text = ""
    for number, value in fields:
        if number == wanted and isinstance(value, bytes):
            text = value.decode()
    return text


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _fields(data: bytes) -> "Iterator[tuple[int, int | bytes]]":
    """The fields of a serialized message (protobuf.dev/programming-guides/encoding); ValueError where it is none."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise ValueError("field number 0")
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + length > len(data):
            raise ValueError("it ends in the middle of a field")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        if at >= len(data):
            raise ValueError("it ends in the middle of a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
    raise ValueError("a number has more than 64 bits")


def reply(address: str, *, version_3: bool) -> str:
    """What `start` prints: where the shim listens, and which version of the shim protocol it speaks."""
    if not version_3:
        return address
    return f'{{"version":3,"address":"{address}","protocol":"ttrpc"}}'


def encode_delete_response(pid: int, exit_status: int, exited_at_ns: int) -> bytes:
    """A containerd.task.v2.DeleteResponse; `exited_at_ns` is nanoseconds since the epoch."""
    seconds, nanoseconds = divmod(exited_at_ns, 1_000_000_000)
    timestamp = _number(1, seconds) + _number(2, nanoseconds)
    return _number(1, pid) + _number(2, exit_status) + bytes([3 << 3 | 2, len(timestamp)]) + timestamp


def _number(field: int, value: int) -> bytes:
    if value == 0:
        return b""
    encoded = bytearray([field << 3])
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
