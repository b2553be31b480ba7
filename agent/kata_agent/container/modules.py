"""Modules of the guest's kernel that it does not ask for by itself.

What it asks for (a file system, a netlink family, a device's number) it loads by /sbin/modprobe without us.
"""

import logging
import os
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from kata_agent.container.spec import Spec
from kata_agent.errors import InvalidError, SetupError
from kata_agent.process.reaper import Reaper
from kata_telemetry.span import Site

__all__ = ["Module", "Modules"]

_trace = Site(package="container", subsystem="sandbox")
_log = logging.getLogger("kata.agent")

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z")
# iptables-legacy and its kin talk to these by socket options, for which the kernel loads nothing; their tables, matches
# and targets it does ask for.
_FIREWALLS: Final = ("ip_tables", "ip6_tables", "arp_tables", "ebtables")


class Module(NamedTuple):
    """A kernel module to load."""

    name: str
    parameters: Sequence[str]


class Modules:
    """Loads modules."""

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper
        self._firewalls = False

    async def load(self, module: Module) -> None:
        """Load one, with what it depends on. Raises InvalidError, SetupError."""
        if not _NAME.match(module.name):
            raise InvalidError(f"{module.name[:80]!r} can't be the name of a kernel module")
        if status := await self._modprobe(module.name, *module.parameters):
            raise SetupError(f"modprobe {module.name} failed with {status}: is it in the image?")

    async def load_for(self, spec: Spec) -> None:
        """Load what a container of this specification may use and can't load itself, once."""
        if self._firewalls or not _may_administrate(spec):
            return
        self._firewalls = True
        try:
            status = await self._modprobe("-a", *_FIREWALLS)
        except SetupError as error:
            _log.warning("%s", error)
            return
        if status:
            # An image of somebody else's: it has no iptables, as a host may have none.
            _log.warning("not all of %s could be loaded: modprobe's status is %d", ", ".join(_FIREWALLS), status)

    async def _modprobe(self, *arguments: str) -> int:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            with _trace.span("modprobe", module=" ".join(arguments)[:128]):
                return await self._reaper.spawn(["modprobe", *arguments], stdio=(null, null, null)).wait()
        except OSError as error:
            raise SetupError(f"can't load kernel module {arguments[0]}: {error}") from error
        finally:
            os.close(null)


def _may_administrate(spec: Spec) -> bool:
    """Whether it may change the guest's network, in a guest: a test may run the agent on somebody's machine."""
    capabilities = spec["process"].get("capabilities")
    bounding = capabilities.get("bounding") if isinstance(capabilities, dict) else None
    return os.getpid() == 1 and isinstance(bounding, list) and "CAP_NET_ADMIN" in bounding
