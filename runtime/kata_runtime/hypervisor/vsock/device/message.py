"""vhost-user messages on the wire.

Numbers and layouts: QEMU, docs/interop/vhost-user.rst, "Message Specification" and "Front-end message types". All
integers are in the host's byte order.
"""

import struct
from typing import Final, NamedTuple

GET_FEATURES: Final = 1
SET_FEATURES: Final = 2
SET_OWNER: Final = 3
RESET_OWNER: Final = 4
SET_MEM_TABLE: Final = 5
SET_VRING_NUM: Final = 8
SET_VRING_ADDR: Final = 9
SET_VRING_BASE: Final = 10
GET_VRING_BASE: Final = 11
SET_VRING_KICK: Final = 12
SET_VRING_CALL: Final = 13
SET_VRING_ERR: Final = 14
GET_PROTOCOL_FEATURES: Final = 15
SET_PROTOCOL_FEATURES: Final = 16
GET_QUEUE_NUM: Final = 17
SET_VRING_ENABLE: Final = 18
GET_CONFIG: Final = 24
SET_CONFIG: Final = 25

HEADER: Final = struct.Struct("=III")  # request, flags, size of the payload
VERSION: Final = 1
VERSION_MASK: Final = 3
REPLY: Final = 1 << 2
NEED_REPLY: Final = 1 << 3

U64: Final = struct.Struct("=Q")
STATE: Final = struct.Struct("=II")  # index, number
ADDRESS: Final = struct.Struct("=IIQQQQ")  # index, flags; addresses of descriptors, used ring, available ring, log
TABLE: Final = struct.Struct("=II")  # number of regions, padding
REGION: Final = struct.Struct("=QQQQ")  # guest address, size, user address, mmap offset
CONFIG: Final = struct.Struct("=III")  # offset, size, flags

# The table has room for 8 regions; so many fds can come with one message.
MAX_REGIONS: Final = 8
# VHOST_USER_MAX_CONFIG_SIZE of QEMU's hw/virtio/vhost-user.c.
MAX_CONFIG: Final = 256
# Above the largest message that we know (the memory table, and 256 bytes of configuration).
MAX_PAYLOAD: Final = 1024

# In the u64 of KICK, CALL and ERR: the ring's index, and whether a file descriptor is missing.
VRING_INDEX_MASK: Final = 0xFF
VRING_NO_FD: Final = 1 << 8

FEATURE_VERSION_1: Final = 1 << 32
FEATURE_PROTOCOL: Final = 1 << 30
PROTOCOL_REPLY_ACK: Final = 1 << 3
PROTOCOL_CONFIG: Final = 1 << 9


class FrontendError(Exception):
    """QEMU broke the vhost-user protocol, or asks for what was not negotiated. The process ends with it."""


class Message(NamedTuple):
    """One request; `fds` belong to whoever handles it."""

    request: int
    flags: int
    payload: bytes
    fds: list[int]

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        """The payload, which must have exactly this layout. Raises FrontendError."""
        if len(self.payload) != layout.size:
            raise FrontendError(f"message {self.request} has {len(self.payload)} bytes of payload, not {layout.size}")
        return layout.unpack(self.payload)


def parse_header(raw: bytes | bytearray) -> tuple[int, int, int]:
    """Request, flags and payload size. Raises FrontendError."""
    request, flags, size = HEADER.unpack(raw)
    if flags & VERSION_MASK != VERSION or flags & REPLY:
        raise FrontendError(f"message {request} has flags {flags:#x}, which is no request of version {VERSION}")
    if size > MAX_PAYLOAD:
        raise FrontendError(f"message {request} announces {size} bytes, more than any message has ({MAX_PAYLOAD})")
    return request, flags, size


def reply(request: int, payload: bytes) -> bytes:
    """The back-end's answer to `request`."""
    return HEADER.pack(request, VERSION | REPLY, len(payload)) + payload
