"""The guest's firewall, which all containers share, by iptables: what the host reads and writes of it.

Rules are netfilter's newer ones (nft), unless a container has made some of the older ones (iptables-legacy).
"""

import asyncio
import os
from pathlib import Path
from signal import SIGKILL
from typing import Final

from kata_agent.errors import InvalidError, ResourceError, SetupError
from kata_agent.process.reaper import Reaper
from kata_telemetry.span import Site

__all__ = ["Firewall"]

_trace = Site(package="container", subsystem="network")

# Bytes of a whole set of rules; ten thousand rules of a mesh have one and a half million.
MAX_RULES: Final = 4 << 20
# Another writer holds the lock of the older rules for so many seconds at most.
_WAIT: Final = "5"
_LEGACY: Final = {False: Path("/proc/net/ip_tables_names"), True: Path("/proc/net/ip6_tables_names")}


class Firewall:
    """Reads and writes it; the kernel, and the lock of the older rules, see to it that nobody sees a half of it."""

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper

    async def save(self, *, v6: bool) -> bytes:
        """The rules, as iptables-save writes them. Raises SetupError, ResourceError."""
        return await self._run("save", [], b"", v6=v6)

    async def restore(self, rules: bytes, *, v6: bool) -> bytes:
        """Put `rules` in the place of those of the tables that they name; what iptables-restore says.

        Raises InvalidError (the rules are wrong; nothing has changed), SetupError.
        """
        if len(rules) > MAX_RULES:
            raise InvalidError(f"{len(rules)} bytes of rules, more than {MAX_RULES}")
        return await self._run("restore", ["--wait", _WAIT], rules, v6=v6)

    async def _run(self, verb: str, arguments: list[str], given: bytes, *, v6: bool) -> bytes:
        kind = "legacy" if _has_legacy(v6=v6) else "nft"
        name = f"ip{'6' if v6 else ''}tables-{verb}"
        stdin, stdout, stderr = (os.memfd_create(stream, os.MFD_CLOEXEC) for stream in ("in", "out", "err"))
        try:
            os.write(stdin, given)
            os.lseek(stdin, 0, os.SEEK_SET)
            with _trace.span(name, tables=kind):
                # One program of many names (xtables-multi(8)).
                child = self._reaper.spawn([f"xtables-{kind}-multi", name, *arguments], stdio=(stdin, stdout, stderr))
                try:
                    status = await child.wait()
                finally:
                    if child.running:
                        child.signal(SIGKILL)
                        await asyncio.shield(child.wait())
            if status:
                words = os.pread(stderr, 1024, 0).decode("utf-8", "replace").strip()
                problem = InvalidError if verb == "restore" else SetupError
                raise problem(f"{name} failed with {status}: {words}")
            if os.fstat(stdout).st_size > MAX_RULES:
                raise ResourceError(f"more than {MAX_RULES} bytes of rules")
            return os.pread(stdout, MAX_RULES, 0)
        except OSError as error:
            raise SetupError(f"can't run {name}: {error.strerror}; is it in the image?") from error
        finally:
            for descriptor in (stdin, stdout, stderr):
                os.close(descriptor)


def _has_legacy(*, v6: bool) -> bool:
    try:
        return bool(_LEGACY[v6].read_text())
    except OSError:
        return False
