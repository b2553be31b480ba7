"""How a guest is booted: the kernel's command line. Why each parameter is there, with figures: docs/decisions/0003."""

__all__ = ["KERNEL_PARAMETERS"]

KERNEL_PARAMETERS: tuple[str, ...] = (
    "console=ttyS0",
    # Errors and panics still reach the console; all the rest is in the guest's /dev/kmsg, with the same time stamps.
    "quiet",
    # Reboot at once, which -no-reboot turns into the end of QEMU: a kernel that can't go on must not hang.
    "panic=-1",
    # A quarter of a second of self-tests of ciphers.
    "cryptomgr.notests",
    # Rewriting lock prefixes on a machine with one CPU costs an emulator more than the prefixes ever will.
    "noreplace-smp",
)
