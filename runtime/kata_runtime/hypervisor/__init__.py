"""QEMU and what it needs on the host: drivers of the VM."""
