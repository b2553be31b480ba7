"""How calls reach the agent: listeners, relay, gRPC, and the one funnel that every call passes."""
