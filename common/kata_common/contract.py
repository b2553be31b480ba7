"""What the runtime and the agent must say alike."""

from typing import Final

__all__ = ["AGENT_SERVICE"]

# OpenTelemetry's service.name of the agent's spans.
AGENT_SERVICE: Final = "kata-agent"
