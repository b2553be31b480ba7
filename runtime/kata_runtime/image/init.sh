#!/bin/sh
# First process of the guest: loads modules, mounts the root file system and becomes the agent.
# It runs in busybox; every command that is not one of the shell's own costs a process in an emulated machine.
# What happens when is written to the kernel's log, where it gets the kernel's time stamps.

say() {
	echo "<6>@MARK@ $1" >/dev/kmsg
}

# One line that says why, then off: a guest that can't boot must not hang.
fail() {
	echo "@FAILED@$1" >/dev/console
	poweroff -f
}

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t devtmpfs -o mode=0755,nosuid dev /dev || fail "devtmpfs can't be mounted"
say start
mount -t proc -o nosuid,nodev,noexec proc /proc || fail "proc can't be mounted"
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys || fail "sysfs can't be mounted"

modprobe -a @MODULES@ || fail "modules can't be loaded"
say modules

# Loading virtio_blk has probed every device that is there, so the root device either exists by now or never will.
root=
for serial in /sys/block/*/serial; do
	[ -e "$serial" ] || continue
	# There is no end of line, for which read reports a failure.
	read -r value <"$serial"
	[ "$value" = "@SERIAL@" ] || continue
	root=${serial#/sys/block/}
	root=${root%/serial}
	break
done
[ "$root" ] || fail "no block device has the serial number @SERIAL@"
mount -t @FSTYPE@ -o @OPTIONS@ "/dev/$root" /root || fail "/dev/$root can't be mounted as @FSTYPE@"
[ -x /root@PYTHON@ ] || fail "/dev/$root holds no guest image: @PYTHON@ is missing"
for directory in dev proc sys; do
	mount -o move "/$directory" "/root/$directory" || fail "/$directory can't be moved to the root file system"
done
echo "<6>@MARK@ switch_root" >/root/dev/kmsg
exec switch_root /root @PYTHON@ @ARGUMENTS@
