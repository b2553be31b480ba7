"""Keeps the shim small: a host has one per pod."""

import ctypes
import importlib
import sys
from types import ModuleType
from typing import Final

__all__ = ["spare"]

# Parameter of mallopt(3): how many heaps for threads there may be. By default each of grpc's threads gets its own.
_M_ARENA_MAX: Final = -8


def spare() -> None:
    """Before the imports of the long life: no `ssl`, which asyncio asks for and the shim's sockets never want.

    grpc has an own one; the exporter of spans, which may want TLS, is another process.
    """
    ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    if "ssl" in sys.modules:
        return
    sys.modules["ssl"] = None  # type: ignore[assignment] # documented: `import ssl` raises ImportError
    import asyncio.sslproto  # noqa: F401 - it takes note that there is none

    # qemu.qmp names a class of it in annotations.
    stand_in = ModuleType("ssl")
    stand_in.SSLContext = object  # type: ignore[attr-defined]
    stand_in.__getattr__ = _of_the_real_one  # type: ignore[method-assign]
    sys.modules["ssl"] = stand_in


def _of_the_real_one(name: str) -> object:
    """Who wants more of `ssl` has it after all: prometheus_client imports it, as soon as somebody asks for metrics."""
    if name.startswith("__"):
        raise AttributeError(name)  # the import machinery looks for these
    if getattr(sys.modules.get("ssl"), "__spec__", None) is None:
        sys.modules.pop("ssl", None)
    return getattr(importlib.import_module("ssl"), name)
