"""What a container may want of the guest's kernel is there when it asks: modules are loaded by then, and not before."""

import shutil
from pathlib import Path

import pytest

from support.bundles import make_bundle
from support.debian import tree
from support.kata import Kata

pytestmark = pytest.mark.vm

# What a container has by default (`runc spec`), and what networks and file systems need.
CAPABILITIES = ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_SETUID", "CAP_SETGID"]
ALL = dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES)
TUN = {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o666}
RULES = [{"allow": False, "access": "rwm"}] + [
    {"allow": True, "type": "c", "major": 10, "minor": minor, "access": "rwm"} for minor in (200, 229)
]
FUSE = {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666}


def make(directory: Path, script: str, **changes: object) -> Path:
    """A bundle of Debian's iptables, nft and iproute2, whose shell is busybox's."""
    process = {"capabilities": ALL, "noNewPrivileges": False}
    bundle = make_bundle(directory, "busybox", "sh", "-ec", script, process=process, **changes)
    shutil.rmtree(bundle / "rootfs")
    shutil.copytree(tree("busybox-static", "iproute2", "iptables", "nftables"), bundle / "rootfs", symlinks=True)
    return bundle


FIREWALL = """
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
/bin/ip link set lo up
/bin/ip link add mesh0 type dummy
/bin/ip addr add 192.0.2.2/24 dev mesh0
/bin/ip link set mesh0 up
/bin/ip route add default via 192.0.2.1
{rules}
busybox nc -l -p 15001 -e busybox echo redirected &
for try in $(busybox seq 100); do
    busybox netstat -ltn | busybox grep -q :15001 && break
    busybox usleep 50000
done
busybox nc -w 10 198.51.100.7 80 </dev/null
"""
IPTABLES = """
{tool}-restore <<'END'
*nat
-A OUTPUT -p tcp -m owner ! --uid-owner 1337 -m comment --comment mesh -j REDIRECT --to-ports 15001
COMMIT
*mangle
-A PREROUTING -p tcp -m conntrack --ctstate INVALID -m multiport --dports 1,2 -j DROP
COMMIT
END
{tool}-save | busybox grep REDIRECT
"""
NFT = """
nft -f - <<'END'
table ip mesh {
    chain out { type nat hook output priority -100; meta skuid != 1337 tcp dport 80 redirect to :15001; }
}
END
nft list ruleset | busybox grep redirect
"""


@pytest.mark.parametrize(
    ("rules", "shown"),
    [
        (IPTABLES.format(tool="iptables-legacy"), b"-j REDIRECT --to-ports 15001"),
        (IPTABLES.format(tool="iptables-nft"), b"-j REDIRECT --to-ports 15001"),
        (NFT, b"redirect to :15001"),
    ],
    ids=["legacy", "iptables-nft", "nft"],
)
def test_a_connection_is_redirected(kata: Kata, tmp_path: Path, rules: str, shown: bytes) -> None:
    """As service meshes do it, by the programs of the container's image alone."""
    done = kata("run", "--bundle", str(make(tmp_path / "b", FIREWALL.format(rules=rules))))
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    assert done.stdout.endswith(b"\nredirected\n")


DRIVERS = """
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
! busybox grep -E '^(wireguard|tun|nfs|nf_tables|ip6_tables_none) ' /proc/modules
/bin/ip link add wg0 type wireguard && /bin/ip -details link show wg0 | busybox grep -o wireguard
/bin/ip tuntap add tun0 mode tun && /bin/ip -details link show tun0 | busybox grep -o 'tun type tun'
exec 3<>/dev/fuse && echo fuse
ip6tables-legacy -t nat -A OUTPUT -p tcp -j REDIRECT --to-ports 15001 && echo six
/bin/ip link add ifb9 type ifb && /bin/ip link add gre0x type gre remote 192.0.2.9 && echo tunnels
/sbin/tc qdisc add dev lo root netem delay 1ms && /sbin/tc qdisc show dev lo | busybox grep -o netem
busybox timeout 5 busybox mount -t nfs -o vers=4,addr=127.0.0.1,clientaddr=127.0.0.1,soft,retrans=0 127.0.0.1:/ /mnt
busybox grep -cE 'nfs4?$' /proc/filesystems
"""


def test_drivers_and_file_systems_come_when_they_are_asked_for(kata: Kata, tmp_path: Path) -> None:
    devices = {"devices": [TUN, FUSE], "resources": {"devices": RULES}}
    bundle = make(tmp_path / "b", DRIVERS.replace(" 127.0.0.1:/ /mnt", " 127.0.0.1:/ /mnt || true"), linux=devices)
    done = kata("run", "--bundle", str(bundle))
    assert done.stdout.splitlines() == [
        *(b"wireguard", b"tun type tun", b"fuse", b"six", b"tunnels", b"netem", b"2"),
    ], done
    assert done.returncode == 0


def test_who_may_not_change_the_network_has_nothing_loaded(kata: Kata) -> None:
    done = kata.run("grep", "-cE", "^(x_tables|ip_tables|nf_tables|tun|nfs|wireguard) ", "/proc/modules")
    assert (done.returncode, done.stdout) == (1, b"0\n")
