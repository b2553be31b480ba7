"""Keeps the shim small: a host has one per pod."""

import sys

from kata_common.linux import use_one_heap
from kata_common.standins import absent, late

__all__ = ["spare"]


def spare() -> None:
    """Before the imports of the long life: no `ssl`, which asyncio asks for and the shim's sockets never want.

    grpc has an own one; the exporter of spans, which may want TLS, is another process. Who wants more of it has it
    after all: prometheus_client imports it, as soon as somebody asks for metrics.
    """
    use_one_heap()
    if absent("ssl"):
        import asyncio.sslproto  # noqa: F401 - it takes note that there is none

        del sys.modules["ssl"]
        # qemu.qmp names a class of it in annotations.
        late("ssl", SSLContext=object)
