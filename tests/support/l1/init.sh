#!/bin/sh
# First process of L1: makes a host of it, runs the tests (or a shell) on the second serial port, and powers off.
# Nothing of systemd runs: what a host needs for containers in VMs is these few lines. The shared directory
# `artifacts` is the real host's: what to do stands there, and what comes out goes there at once.

export PATH=/opt/kata/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
export KATA_L1=1 PYTHONPATH=/opt/source/tests
share=/opt/source/artifacts

off() {
	sync
	busybox poweroff -f
}

fail() {
	echo "nested: L1: $1" | tee /dev/console >/dev/ttyS1
	off
}

mount -t tmpfs -o mode=0755 tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tracefs tracefs /sys/kernel/tracing
hostname l1
ip link set lo up
modprobe virtiofs && mount -t virtiofs artifacts $share || fail "the shared directory can't be mounted"
. $share/l1/order

case $(grep -o -w -m 1 -E 'svm|vmx' /proc/cpuinfo) in
*svm*) kvm=kvm_amd ;;
*vmx*) kvm=kvm_intel ;;
*) fail "its CPU has neither svm nor vmx" ;;
esac
for module in $kvm vhost_vsock vhost_net tun overlay; do
	case " $without " in *" $module "*) continue ;; esac
	modprobe $module || fail "module $module can't be loaded: $(modprobe $module 2>&1)"
done
# udev's part (Debian's 50-udev-default.rules).
chmod 0666 /dev/net/tun
if [ -e /dev/kvm ]; then
	chgrp kvm /dev/kvm
	chmod 0660 /dev/kvm
fi
mkdir -p /var/lib/kata-containers
ln -sfn /opt/image /var/lib/kata-containers/image

cd /opt/source || fail "no tests"
if [ "$shell" ]; then
	export PS1='L1:\w# ' TERM="$term"
	stty -F /dev/ttyS1 rows "$rows" cols "$columns"
	setsid --ctty --wait bash --norc -i </dev/ttyS1 >/dev/ttyS1 2>&1
	echo 0 >$share/l1/status
else
	stty -F /dev/ttyS1 raw
	# A pipe, not a terminal: what comes out is lines.
	{
		bash -c "$command" </dev/null
		echo $? >$share/l1/status
	} 2>&1 | cat >/dev/ttyS1
fi
dmesg >$share/l1/dmesg.txt
off
