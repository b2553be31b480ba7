"""Calls of Kata's agent (src/libs/protocols/protos/agent.proto, 4.1.0) that mean nothing here, and why."""

from typing import Final

__all__ = ["ELSEWHERE"]

_STDIO: Final = "stdio never travels in messages: it is a vsock stream that StdioPorts names"
_MEM_AGENT: Final = "this agent has no mem-agent: memory that containers may use is limited by their cgroups"
ELSEWHERE: Final = {
    "WriteStdin": _STDIO,
    "ReadStdout": _STDIO,
    "ReadStderr": _STDIO,
    "MemAgentMemcgSet": _MEM_AGENT,
    "MemAgentCompactSet": _MEM_AGENT,
    "RemoveStaleVirtiofsShareMounts": "no mount of a shared directory gets stale: the host never gives a name again",
}
