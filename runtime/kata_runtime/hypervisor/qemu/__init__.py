"""All that knows QEMU."""
