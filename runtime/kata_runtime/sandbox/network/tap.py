"""The way between an interface of the namespace and QEMU: a tap, and tc's redirect in both directions.

Kata's names: "tcfilter" is this model, `tap0_kata` the first tap (virtcontainers/network.go). Everything here is done
by a thread inside of the namespace. A tap has no life of its own: it goes when QEMU and we have closed it.
"""

import fcntl
import os
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from kata_runtime.errors import SandboxError
from kata_runtime.sandbox.network.model import Interface
from kata_telemetry.span import Site

__all__ = ["TAP_NAME", "connect", "disconnect", "open_tap"]

_trace = Site(package="virtcontainers", subsystem="network")

TAP_NAME = "tap{}_kata"
# linux/if_tun.h; the header is virtio's, which lets checksums and segmentation pass unfinished.
_TUNSETIFF = 0x4004_54CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_TUN = "/dev/net/tun"
# tun_net_init(): MAX_MTU less the Ethernet header.
_MAX_TAP_MTU = 65521


def open_tap(name: str) -> int:
    """Make a tap in this thread's namespace; the file descriptor that it lives by.

    Raises:
        SandboxError: it can't be made.
    """
    fd = -1
    try:
        fd = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        hint = "modprobe tun" if fd < 0 else "another VM may be using this network namespace: each needs its own"
        raise SandboxError(f"the tap device {name} can't be made: {error.strerror}", hint=hint) from error
    return fd


def connect(interface: Interface, tap: str) -> None:
    """Let everything pass between an interface and a tap.

    Raises:
        SandboxError: tc or the kernel refuses; the interface is as it was.
    """
    from kata_runtime.sandbox.network.rtnetlink import Rtnetlink

    with _trace.span("xConnectVMNetwork", interface=interface.name, tap=tap), Rtnetlink() as kernel:
        index = socket.if_nametoindex(tap)
        # The host's own IPv6 has nothing to say to the guest.
        with suppress(OSError):
            Path(f"/proc/sys/net/ipv6/conf/{tap}/disable_ipv6").write_text("1")
        try:
            kernel.set_up(index, min(interface.mtu, _MAX_TAP_MTU))
            with _trace.span("setupTCFiltering"):
                kernel.redirect(index, interface.index)
                kernel.redirect(interface.index, index)
        except FileExistsError as error:
            raise SandboxError(
                f"interface {interface.name} has an ingress qdisc already: somebody else takes what it receives",
                hint="another VM may be using this network namespace: each needs its own",
            ) from error
        except OSError as error:
            raise SandboxError(
                f"interface {interface.name} can't be connected to the VM's {tap}: {error.strerror}",
                hint="the kernel needs sch_ingress, cls_u32 and act_mirred",
            ) from error


def disconnect(interfaces: Mapping[str, int]) -> list[str]:
    """Undo `connect` for interfaces (name: index) that still are what they were; what could not be undone."""
    from kata_runtime.sandbox.network.rtnetlink import Rtnetlink

    problems = []
    present = {name: index for index, name in socket.if_nameindex()}
    with Rtnetlink() as kernel:
        for name, index in interfaces.items():
            # One that has been taken away has taken its qdisc along.
            if present.get(name) == index:
                with _trace.span("removeTCFiltering", interface=name):
                    try:
                        kernel.release(index)
                    except OSError as error:
                        problems.append(f"{name}: {error.strerror}")
    return problems
