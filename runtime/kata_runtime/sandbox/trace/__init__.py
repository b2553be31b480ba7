"""The trace of one sandbox."""

from kata_runtime.sandbox.trace.trace import SandboxTrace

__all__ = ["SandboxTrace"]
