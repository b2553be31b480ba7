"""Reaching the guest: vsock, the agent's gRPC, its clock, and stdio streams."""
