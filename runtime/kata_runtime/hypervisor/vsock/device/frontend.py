"""What QEMU says over vhost-user, and the rings that it makes of it.

Sequence and meaning: QEMU, docs/interop/vhost-user.rst; what QEMU 7.2 does within them: at start features, then per
ring CALL and ERR, then GET_CONFIG; when the driver is ready memory table, NUM, BASE, ADDR and KICK per ring and ENABLE.
A pause stops both rings (GET_VRING_BASE) and its end repeats everything, the memory table too; a reset of the guest
looks the same, but the rings start at another index. CALL comes whenever the guest masks its interrupts.
"""

import os
from collections.abc import Callable
from typing import Final, Protocol

from kata_runtime.hypervisor.vsock.device import message as m
from kata_runtime.hypervisor.vsock.device.device import Device
from kata_runtime.hypervisor.vsock.device.memory import GuestMemory, Region
from kata_runtime.hypervisor.vsock.device.message import FrontendError, Message
from kata_runtime.hypervisor.vsock.device.ring import MAX_SIZE, Ring, RingError

# virtio 1.2, 5.10.2: queue 0 is RX, 1 is TX; the event queue (2) stays with QEMU.
RX: Final = 0
TX: Final = 1

FEATURES: Final = m.FEATURE_VERSION_1 | m.FEATURE_PROTOCOL
PROTOCOL_FEATURES: Final = m.PROTOCOL_REPLY_ACK | m.PROTOCOL_CONFIG
# How often a guest that breaks its rings is told of.
_BREAKS_TOLD: Final = 10


class Kicks(Protocol):
    """Where the session registers the eventfds that it is kicked by."""

    def watch_kick(self, fd: int, ring: int) -> None:
        """Call back when `fd` is signalled. Raises OSError where it can't be waited for."""
        ...

    def forget_kick(self, fd: int) -> None:
        """Stop that."""
        ...

    def log(self, level: str, text: str) -> None:
        """One line for the operator."""
        ...


class Queue:
    """What QEMU told about one ring. File descriptors are ours to close; -1: none."""

    __slots__ = ("addresses", "base", "call", "enabled", "error", "kick", "ring", "size", "stopped_at")

    def __init__(self) -> None:
        self.size = 0
        self.addresses: tuple[int, int, int] | None = None
        self.base = 0
        self.stopped_at: int | None = None
        self.enabled = False
        self.ring: Ring | None = None
        self.kick = self.call = self.error = -1


class Session:
    """The device's side of one vhost-user connection."""

    def __init__(self, device: Device, kicks: Kicks) -> None:
        self._device = device
        self._kicks = kicks
        self._memory: GuestMemory | None = None
        self._queues = (Queue(), Queue())
        self._protocol = 0
        self._breaks = 0
        self._handlers: dict[int, Callable[[Message], bytes | None]] = {
            m.GET_FEATURES: lambda _: m.U64.pack(FEATURES),
            m.SET_FEATURES: self._set_features,
            m.SET_OWNER: lambda _: None,
            m.RESET_OWNER: lambda _: None,  # the text: "no longer used … back-ends ignore it" or disable rings
            m.SET_MEM_TABLE: self._set_mem_table,
            m.SET_VRING_NUM: self._set_vring_num,
            m.SET_VRING_ADDR: self._set_vring_addr,
            m.SET_VRING_BASE: self._set_vring_base,
            m.GET_VRING_BASE: self._get_vring_base,
            m.SET_VRING_KICK: self._set_vring_kick,
            m.SET_VRING_CALL: self._set_vring_call,
            m.SET_VRING_ERR: self._set_vring_err,
            m.GET_PROTOCOL_FEATURES: lambda _: m.U64.pack(PROTOCOL_FEATURES),
            m.SET_PROTOCOL_FEATURES: self._set_protocol_features,
            m.GET_QUEUE_NUM: lambda _: m.U64.pack(len(self._queues)),
            m.SET_VRING_ENABLE: self._set_vring_enable,
            m.GET_CONFIG: self._get_config,
            m.SET_CONFIG: self._set_config,
        }

    def handle(self, message: Message) -> bytes:
        """Do what the message says; returns the reply to send, or nothing. Raises FrontendError.

        Takes over the message's fds: those that are not kept are closed.
        """
        try:
            handler = self._handlers.get(message.request)
            if handler is None:
                raise FrontendError(f"message {message.request} was not negotiated or is unknown")
            answer = handler(message)
        finally:
            for fd in message.fds:
                os.close(fd)
        if answer is not None:
            return m.reply(message.request, answer)
        if message.flags & m.NEED_REPLY and self._protocol & m.PROTOCOL_REPLY_ACK:
            return m.reply(message.request, m.U64.pack(0))
        return b""

    def signal(self) -> None:
        """Interrupt the guest for the buffers that were used since the last call."""
        for queue in self._queues:
            if queue.ring is not None and queue.ring.take_signal():
                _notify(queue.call)

    def broken(self, error: RingError) -> None:
        """The guest's driver can't be followed: no more until it starts again."""
        # Whoever has the device's registers can have this as often as they like.
        self._breaks += 1
        if self._breaks <= _BREAKS_TOLD:
            last = "; further times are not logged" if self._breaks == _BREAKS_TOLD else ""
            self._kicks.log("warning", f"the device stops until the guest resets it: {error}{last}")
        self._device.stop()
        self._device.forget_guest()
        for queue in self._queues:
            _notify(queue.error)

    def close(self) -> None:
        """Let go of everything that QEMU gave."""
        self._device.stop()
        for queue in self._queues:
            self._stop(queue)
            for fd in (queue.call, queue.error):
                _close(fd)
            queue.call = queue.error = -1
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    # Features and configuration.

    def _set_features(self, message: Message) -> None:
        (features,) = message.unpack(m.U64)
        if features & ~FEATURES:
            raise FrontendError(f"SET_FEATURES {features:#x} has features that were not offered ({FEATURES:#x})")
        if not features & m.FEATURE_PROTOCOL:
            for queue in self._queues:
                queue.enabled = True

    def _set_protocol_features(self, message: Message) -> None:
        (features,) = message.unpack(m.U64)
        if features & ~PROTOCOL_FEATURES:
            raise FrontendError(f"SET_PROTOCOL_FEATURES {features:#x} has features that were not offered")
        self._protocol = features

    def _get_config(self, message: Message) -> bytes:
        if len(message.payload) < m.CONFIG.size:
            raise FrontendError(f"GET_CONFIG of {len(message.payload)} bytes")
        offset, size, flags = m.CONFIG.unpack_from(message.payload)
        # struct virtio_vsock_config (virtio 1.2, 5.10.4) is the CID alone.
        content = self._device.cid.to_bytes(8, "little")
        if size > m.MAX_CONFIG or offset + size > len(content):
            return b""  # how the protocol says that it can't be read
        return m.CONFIG.pack(offset, size, flags) + content[offset : offset + size]

    def _set_config(self, message: Message) -> bytes | None:
        self._kicks.log("debug", "SET_CONFIG ignored: the device has nothing to set")
        refused = message.flags & m.NEED_REPLY and self._protocol & m.PROTOCOL_REPLY_ACK
        return m.U64.pack(1) if refused else None

    # Memory.

    def _set_mem_table(self, message: Message) -> None:
        payload = message.payload
        if len(payload) < m.TABLE.size:
            raise FrontendError(f"SET_MEM_TABLE of {len(payload)} bytes")
        count, _ = m.TABLE.unpack_from(payload)
        # QEMU sends the part of its table that is used; the layout in the text has always 8 regions.
        end = m.TABLE.size + count * m.REGION.size
        if count > m.MAX_REGIONS or len(payload) < end or len(message.fds) != count:
            raise FrontendError(
                f"SET_MEM_TABLE has {count} regions in {len(payload)} bytes and {len(message.fds)} file descriptors"
            )
        regions = [Region(*entry) for entry in m.REGION.iter_unpack(payload[m.TABLE.size : end])]
        old, self._memory = self._memory, GuestMemory.map(regions, message.fds)
        try:
            for queue in self._queues:
                if queue.ring is not None:
                    queue.ring.release()
                    queue.ring.bind(self._memory)
        except RingError as error:
            self.broken(error)
        if old is not None:
            old.close()

    # Rings.

    def _queue(self, index: int) -> Queue:
        if index >= len(self._queues):
            raise FrontendError(f"ring {index}: a vsock backend has rings {RX} and {TX}")
        return self._queues[index]

    def _set_vring_num(self, message: Message) -> None:
        index, size = message.unpack(m.STATE)
        if not 0 < size <= MAX_SIZE:
            raise FrontendError(f"SET_VRING_NUM: ring {index} of size {size}")
        self._stopped(index, message).size = size

    def _set_vring_addr(self, message: Message) -> None:
        index, _, descriptors, used, available, _ = message.unpack(m.ADDRESS)
        queue = self._queue(index)
        queue.addresses = (descriptors, available, used)

    def _set_vring_base(self, message: Message) -> None:
        index, base = message.unpack(m.STATE)
        if base > 0xFFFF:
            raise FrontendError(f"SET_VRING_BASE: ring {index} at {base}")
        self._stopped(index, message).base = base

    def _stopped(self, index: int, message: Message) -> Queue:
        queue = self._queue(index)
        if queue.kick >= 0:
            raise FrontendError(f"message {message.request} for ring {index}, which runs")
        return queue

    def _get_vring_base(self, message: Message) -> bytes:
        index, _ = message.unpack(m.STATE)
        queue = self._queue(index)
        self._stop(queue)
        return m.STATE.pack(index, queue.base)

    def _set_vring_kick(self, message: Message) -> None:
        queue, index, fd = self._take_fd(message)
        if fd < 0:
            raise FrontendError(f"SET_VRING_KICK: ring {index} without an eventfd, and polling is not supported")
        if queue.kick >= 0:
            self._kicks.forget_kick(queue.kick)
            os.close(queue.kick)
        queue.kick = fd
        try:
            self._kicks.watch_kick(fd, index)
        except OSError as error:
            os.close(fd)
            queue.kick = -1
            raise FrontendError(f"SET_VRING_KICK: ring {index} has an fd that can't be waited for: {error}") from error
        self._start()

    def _set_vring_call(self, message: Message) -> None:
        queue, _, fd = self._take_fd(message)
        _close(queue.call)
        queue.call = fd
        if queue.ring is not None:
            _notify(fd)  # a signal for buffers that are used already may have gone to the old one

    def _set_vring_err(self, message: Message) -> None:
        queue, _, fd = self._take_fd(message)
        _close(queue.error)
        queue.error = fd

    def _set_vring_enable(self, message: Message) -> None:
        index, enabled = message.unpack(m.STATE)
        self._queue(index).enabled = bool(enabled)
        if enabled:
            self._start()
        else:
            self._device.stop()

    def _take_fd(self, message: Message) -> tuple[Queue, int, int]:
        (value,) = message.unpack(m.U64)
        expected = 0 if value & m.VRING_NO_FD else 1
        if len(message.fds) != expected:
            raise FrontendError(f"message {message.request} has {len(message.fds)} file descriptors, not {expected}")
        index = value & m.VRING_INDEX_MASK
        queue = self._queue(index)
        fd = message.fds.pop() if expected else -1
        if fd >= 0:
            # An eventfd that blocks would stop all connections.
            os.set_blocking(fd, False)
        return queue, index, fd

    def _start(self) -> None:
        """Start the device when both rings are complete."""
        if self._device.running or not all(queue.enabled and queue.kick >= 0 for queue in self._queues):
            return
        fresh = False
        for index, queue in enumerate(self._queues):
            if self._memory is None or not queue.size or queue.addresses is None:
                raise FrontendError(f"ring {index} is to run without memory, size or addresses")
            fresh |= queue.ring is None and queue.base != queue.stopped_at
        if fresh:
            self._device.forget_guest()
        try:
            for index, queue in enumerate(self._queues):
                self._make_ring(queue, writable=index == RX)
        except RingError as error:
            self.broken(error)
            return
        rx, tx = (queue.ring for queue in self._queues)
        assert rx is not None
        assert tx is not None
        self._kicks.log("debug", f"rings run, {'new driver' if fresh else 'as before'}")
        self._device.start(rx, tx)

    def _make_ring(self, queue: Queue, *, writable: bool) -> None:
        if queue.ring is None:
            assert self._memory is not None
            assert queue.addresses is not None
            queue.ring = Ring(self._memory, queue.size, queue.addresses, queue.base, writable=writable)

    def _stop(self, queue: Queue) -> None:
        self._device.stop()
        if queue.kick >= 0:
            self._kicks.forget_kick(queue.kick)
            os.close(queue.kick)
            queue.kick = -1
        if queue.ring is not None:
            queue.base = queue.stopped_at = queue.ring.next
            queue.ring.release()
            queue.ring = None


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def _notify(fd: int) -> None:
    """Signal an eventfd. Raises FrontendError."""
    if fd < 0:
        return
    try:
        os.eventfd_write(fd, 1)
    except BlockingIOError:
        pass  # it is full, so it is signalled
    except OSError as error:
        raise FrontendError(f"an eventfd of a ring can't be signalled: {error}") from error
