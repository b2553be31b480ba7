"""What can be asked of a guest besides its containers: by the commands, of a sandbox that runs."""

import base64
import json
import os
import pty
import re
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support.kata import Kata

pytestmark = pytest.mark.vm

RULES = b"*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 15006\nCOMMIT\n"


@contextmanager
def running(kata: Kata) -> Iterator[str]:
    """The id of a sandbox that runs for the block."""
    done = kata("run", "-d", "--", "sleep", "1000")
    assert done.returncode == 0, done.stderr
    sandbox = done.stdout.decode().strip()
    try:
        yield sandbox
    finally:
        kata("stop", sandbox)


def test_firewall_numbers_and_policy(kata: Kata) -> None:
    with running(kata) as sandbox:
        mine = ("--sandbox-id", sandbox)
        assert b"REDIRECT" not in kata("iptables", "get", *mine).stdout
        put = kata("iptables", "set", *mine, "-", stdin=RULES)
        assert (put.returncode, put.stderr) == (0, b"")
        listed = kata("iptables", "get", *mine)
        assert b"-A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 15006" in listed.stdout
        assert b"REDIRECT" not in kata("iptables", "get", "--v6", *mine).stdout
        wrong = kata("iptables", "set", *mine, "-", stdin=b"*nat\n-A NOWHERE -j WRONG\nCOMMIT\n")
        assert (wrong.returncode, b"iptables-restore failed" in wrong.stderr) == (125, True), wrong
        policy = json.dumps({"rules": [{"deny": ["GetIPTables", "SetPolicy"]}]}).encode()
        assert kata("policy", "set", *mine, "-", stdin=policy).returncode == 0
        denied = kata("iptables", "get", *mine)
        assert b"GetIPTables is denied by rule 1 of the sandbox's policy" in denied.stderr
        assert kata("policy", "set", *mine, "-", stdin=b"{}").returncode == 125


def test_metrics_of_the_guest(kata: Kata) -> None:
    from kata_runtime.cli.control import ask

    with running(kata) as sandbox:
        text = ask(sandbox, "GET", "/metrics").decode()
        found = re.search(r'^kata_guest_meminfo\{item="memtotal"\} (\S+)$', text, re.MULTILINE)
        assert found is not None, text
        assert float(found[1]) > 100 << 20
        assert "\nkata_agent_metrics_left_out 0\n" in text
        accept = {"accept": "application/openmetrics-text"}
        assert ask(sandbox, "GET", "/metrics", headers=accept).endswith(b"left_out 0\n# EOF\n")


def test_a_policy_of_the_configuration(kata: Kata) -> None:
    rules = {"rules": [{"deny": ["CreateContainer"], "where": {"oci.process.args.0": ["false"]}}]}
    kata.configure("agent.kata", policy=base64.b64encode(json.dumps(rules).encode()).decode())
    assert kata.run("true").returncode == 0
    done = kata.run("false")
    assert (done.returncode, b"CreateContainer is denied by rule 1" in done.stderr) == (125, True), done
    kata.configure("agent.kata", policy="package agent_policy\ndefault CreateContainerRequest := true\n")
    done = kata.run("true")
    assert (done.returncode, b"Rego can't be read here" in done.stderr) == (125, True), done


def at_console(kata: Kata, *arguments: str) -> bytes:
    """What is seen at a terminal that `arguments` have, when a person types a line at the prompt."""
    master, slave = pty.openpty()
    try:
        child = subprocess.Popen(kata.command(*arguments), env=kata.env(), stdin=slave, stdout=slave, stderr=slave)
    finally:
        os.close(slave)
    seen, typed = b"", False
    while select.select([master], [], [], 30)[0]:
        try:
            seen += os.read(master, 4096)
        except OSError:  # nobody has the other end any more
            break
        if not typed and b"guest# " in seen:
            typed = bool(os.write(master, b"tty; echo $((6*7)) $$; cat /proc/1/comm; exit\n"))
    os.close(master)
    assert child.wait(30) == 0, seen
    return seen


@pytest.mark.parametrize("by_kernel", [False, True], ids=["configuration", "kernel parameters"])
def test_the_debug_console(kata: Kata, *, by_kernel: bool) -> None:
    if by_kernel:
        kata.configure("hypervisor.qemu", kernel_params="agent.debug_console agent.debug_console_vport=1026")
    else:
        kata.configure("agent.kata", debug_console_enabled=True)
    with running(kata) as sandbox:
        for command in (("console", sandbox), ("exec", sandbox[:12])):
            seen = at_console(kata, *command)
            assert b"/dev/pts/" in seen
            assert re.search(rb"\n42 \d+\r\n(kata-agent|python3.*)\r\n", seen), seen
        # A script has its input from a pipe.
        done = kata("console", sandbox, stdin=b"exec 2>&1; echo $((6*7)); exit\n")
        assert b"\n42\r\n" in done.stdout


def test_there_is_no_console_unless_it_is_asked_for(kata: Kata) -> None:
    with running(kata) as sandbox:
        for command in (("console", sandbox), ("exec", sandbox)):
            done = kata(*command)
            assert done.returncode == 125
            assert b"has no debug console" in done.stderr
            assert b"debug_console_enabled" in done.stderr
