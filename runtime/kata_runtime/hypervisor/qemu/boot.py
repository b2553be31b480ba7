"""How a guest is booted: kernel parameters and machine options. Figures for each: docs/decisions/0005-boot.md."""

from collections.abc import Mapping

from kata_runtime.hypervisor.qemu.accelerator import Accelerator

__all__ = ["CPUS", "KERNEL_PARAMETERS", "KERNEL_PARAMETERS_OF", "MACHINE_OPTIONS"]

KERNEL_PARAMETERS: tuple[str, ...] = (
    "console=ttyS0",
    # Errors and panics still reach the console; all the rest is in the guest's /dev/kmsg, with the same time stamps.
    "quiet",
    # Reboot at once, which -no-reboot turns into the end of QEMU: a kernel that can't go on must not hang.
    "panic=-1",
    # The kernel's self-tests of its ciphers.
    "cryptomgr.notests",
    # Rewriting lock prefixes on a machine with one CPU costs an emulator more than the prefixes ever will.
    "noreplace-smp",
    # A busy host delivers the emulated timer's interrupts late. The check at boot then takes the timer for broken, and
    # the watchdog takes the TSC for unstable and replaces it by a clock that costs an exit per reading.
    "no_timer_check",
    "tsc=reliable",
    # Memory that may come lies above 4 GiB: for devices that reach no further the kernel would clear 64 MiB of buffers
    # at boot. Virtio's reach all of it.
    "swiotlb=noforce",
    # Synchronous waits for RCU, as of unmounting, don't wait for the next few timer ticks.
    "rcupdate.rcu_expedited=1",
)

# Among them whether pages are cleared when they are allocated, also those that only the kernel sees.
KERNEL_PARAMETERS_OF: Mapping[Accelerator, tuple[str, ...]] = {
    # The kernel's own default, against Debian's. What clearing hardens is the inside of the guest; the border of a
    # sandbox is the VM's.
    # lastbus: the kernel looks for 256 PCI buses by port, 16,000 exits to QEMU, after it has found all there are from
    # ACPI and bridges. An emulator has no exits to save.
    Accelerator.KVM: ("init_on_alloc=0", "pci=lastbus=0"),
    # An emulator keeps its translation of a page's code until it sees a write to that page. It does not see those of
    # virtiofsd, another process: code that is read into a page that has held other code runs as the old code. The
    # guest's own write, when it clears the page before virtiofsd fills it, is what drops the translations. Without it
    # programs in a guest crash at random with QEMU 10.0 (docs/decisions/0005-boot.md has the evidence).
    Accelerator.TCG: ("init_on_alloc=1",),
}

CPUS: Mapping[Accelerator, str] = {
    Accelerator.KVM: "host",
    # An emulator moves a byte per step in `rep movsb` and `rep stosb`. Without these two flags, which say that they are
    # fast, the kernel copies and clears by eight bytes.
    Accelerator.TCG: "max,erms=off,fsrm=off",
}

# For q35, with `-display none -vga none`: devices that a guest would only spend time on finding. The kernel needs none
# of them: time comes from TSC and ACPI's timer, reset from ACPI, disks from virtio. (`graphics=off` must not be among
# them: it makes SeaBIOS write to the serial console, which costs time and puts its prompt before our first line.)
MACHINE_OPTIONS: tuple[str, ...] = (
    "hpet=off",
    "i8042=off",
    "sata=off",
    "smbus=off",
    "vmport=off",
)
