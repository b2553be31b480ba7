"""What may be asked of a guest besides its containers: its firewall, its numbers, which calls it answers, a shell."""

import os
import re
import socket
from typing import TYPE_CHECKING, Final

from kata_protos import agent_pb2 as pb
from kata_runtime.errors import AgentError
from kata_runtime.guest import clock
from kata_runtime.guest.dial import dial
from kata_runtime.guest.transport import Transport
from kata_telemetry.clock import HostClock

if TYPE_CHECKING:
    from kata_runtime.guest.agent import AgentClient

__all__ = ["MAX_RULES", "GuestCalls", "checked_metrics", "renew"]

# Bytes of rules that one call can carry.
MAX_RULES: Final = 2 << 20
# The guest's metrics are its own words: what is not such a line is not told on, and not more than so many.
_LINE: Final = re.compile(
    r"# (?:HELP kata_(?:agent|guest)_[a-z0-9_]{1,64} [A-Za-z0-9 ,.'()/-]{0,200}"
    r"|TYPE kata_(?:agent|guest)_[a-z0-9_]{1,64} gauge)"
    r'|kata_(?:agent|guest)_[a-z0-9_]{1,64}(?:\{(?:[a-z_]{1,32}="[A-Za-z0-9_.:@-]{0,64}",?){1,4}\})? '
    r"-?[0-9]{1,24}(?:\.[0-9]{1,24})?(?:e[+-]?[0-9]{1,3})?"
)
_MAX_LINES: Final = 4096
# Nanoseconds that a guest's wall clock may be off after a pause; a step back would be worse.
_OFF: Final = 10_000_000
ENTROPY: Final = 64


class GuestCalls:
    """Of a sandbox that runs; everything raises AgentError."""

    def __init__(self, agent: "AgentClient", transport: Transport) -> None:
        self._agent = agent
        self._transport = transport

    async def iptables(self, *, v6: bool) -> bytes:
        """The guest's rules, as iptables-save writes them."""
        answer = await self._agent.call(self._agent.service.GetIPTables, pb.GetIPTablesRequest(is_ipv6=v6))
        return bytes(answer.data)

    async def set_iptables(self, rules: bytes, *, v6: bool) -> bytes:
        """Put rules in the place of the guest's; what iptables-restore says."""
        request = pb.SetIPTablesRequest(is_ipv6=v6, data=rules)
        return bytes((await self._agent.call(self._agent.service.SetIPTables, request)).data)

    async def set_policy(self, text: str) -> None:
        """Have only what the policy allows answered from now on."""
        await self._agent.call(self._agent.service.SetPolicy, pb.SetPolicyRequest(policy=text))

    async def metrics(self) -> str:
        """Lines for Prometheus; the guest's, as far as they are such."""
        text = (await self._agent.call(self._agent.service.GetMetrics, pb.GetMetricsRequest())).metrics
        return checked_metrics(text)

    async def console(self, port: int) -> socket.socket:
        """A stream to a shell of the guest's own."""
        try:
            stream, _ = await dial(self._transport, port, "console")
        except AgentError as error:
            raise AgentError("console", "UNAVAILABLE", f"nobody listens at the guest's port {port}") from error
        return stream


def checked_metrics(text: str) -> str:
    """What of a guest's text are lines for Prometheus; how many are not is one more of them."""
    lines = text.split("\n", _MAX_LINES)[:_MAX_LINES]
    kept = [line for line in lines if _LINE.fullmatch(line)]
    left_out = sum(1 for line in lines if line) - len(kept)
    name = "kata_agent_metrics_left_out"
    kept += [f"# HELP {name} Lines of the guest that are none.", f"# TYPE {name} gauge", f"{name} {left_out}"]
    return "".join(f"{line}\n" for line in kept)


async def renew(agent: "AgentClient", transport: Transport) -> None:
    """After a pause: random numbers that nobody can have seen, and the time that it is."""
    await agent.call(agent.service.ReseedRandomDev, pb.ReseedRandomDevRequest(data=os.urandom(ENTROPY)))
    host = HostClock()
    reading = await clock.measure(transport, host, patience=0)
    if abs(reading.wall_error_ns) > _OFF:
        now = host.to_host(host.now())
        request = pb.SetGuestDateTimeRequest(Sec=now // 10**9, Usec=now % 10**9 // 1000)
        await agent.call(agent.service.SetGuestDateTime, request)
