"""Which hypervisor the configuration means: the one place outside of a hypervisor's folder that names it."""

from kata_runtime.config.model import Config
from kata_runtime.hypervisor.machine import Hypervisor

__all__ = ["hypervisor_of"]


def hypervisor_of(config: Config) -> Hypervisor:
    """The hypervisor for one machine; nothing has happened yet."""
    from kata_runtime.hypervisor.qemu.hypervisor import Qemu

    return Qemu(config.qemu)
