"""Headers of virtio-vsock packets.

Layout, numbers and rules are those of the OASIS virtio 1.2 specification, chapter 5.10 ("Socket Device"): `struct
virtio_vsock_hdr` (5.10.6), operations (5.10.6), stream type (5.10.6.4), shutdown flags (5.10.6.5).
"""

import struct
from typing import Final

# le64 src_cid, dst_cid; le32 src_port, dst_port, len; le16 type, op; le32 flags, buf_alloc, fwd_cnt; without padding.
HEADER: Final = struct.Struct("<QQIIIHHIII")
HEADER_SIZE: Final = HEADER.size

REQUEST: Final = 1
RESPONSE: Final = 2
RST: Final = 3
SHUTDOWN: Final = 4
RW: Final = 5
CREDIT_UPDATE: Final = 6
CREDIT_REQUEST: Final = 7

STREAM: Final = 1

# Flags of SHUTDOWN: its sender will receive, or send, no more.
SHUT_RCV: Final = 1
SHUT_SEND: Final = 2
SHUT_BOTH: Final = SHUT_RCV | SHUT_SEND

HOST_CID: Final = 2
# VMADDR_PORT_ANY of Linux' vm_sockets.h: no port that anyone can listen on.
PORT_ANY: Final = 0xFFFF_FFFF


def reset_for(fields: tuple[int, ...]) -> bytes:
    """The RST that answers a packet with these header fields.

    It comes from the address that the packet was sent to, or the guest would not know what it answers.
    """
    src_cid, dst_cid, src_port, dst_port, _, kind, *_ = fields
    return HEADER.pack(dst_cid, src_cid, dst_port, src_port, 0, kind, RST, 0, 0, 0)
