"""The VM: QEMU, its devices' helper processes, and what the guest says while it boots."""
