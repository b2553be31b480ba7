"""The tables of docs/compatibility.md, made of what the code says: `python tests/support/compatibility.py --write`.

A test compares them; the words around them are the document's own.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from kata_runtime.config.annotations import APPLIED, FOREIGN
from kata_runtime.config.kata_keys import ALIASES, KATA_KEYS
from kata_runtime.config.validate import KEYS
from kata_runtime.oci.fields import rows

__all__ = ["DOCUMENT", "tables", "with_tables"]

DOCUMENT = Path(__file__).parents[2] / "docs/compatibility.md"


def _table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    def row(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    titles = list(head)
    return "\n".join([row(titles), "|" + "---|" * len(titles), *map(row, lines)])


def _fields() -> str:
    return _table(
        ("field", "here", "how, or why not"), ((f"`{path}`", rule.handling, rule.says) for path, rule in rows())
    )


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else json.dumps(value)


def _comments() -> Mapping[tuple[str, str], str]:
    """What configuration.toml says above each key, or above the keys that it belongs to."""
    table, said, found = "", "", {}
    above = ""
    for line in (DOCUMENT.parents[1] / "configuration.toml").read_text().splitlines():
        if line.startswith("["):
            table = line.strip("[]")
        elif line.startswith("#"):
            said = f"{said} {line[2:]}" if above.startswith("#") else line[2:]
        elif " = " in line:
            found[table, line.partition(" = ")[0]] = said
        above = line
    return found


def _keys() -> str:
    comments = _comments()
    lines = [[f"`[{table}] {key}`", "applied", comments[table, key]] for table, keys in KEYS.items() for key in keys]
    lines += [[f"`[{table}] {key}`", "applied", f"as `[{at}] {name}`"] for (table, key), (at, name) in ALIASES.items()]
    for table, rules in KATA_KEYS.items():
        for key, rule in rules.items():
            taken = " and ".join(f"`{_toml(value)}`" for value in rule.taken)
            lines.append([f"`[{table}] {key}`", "noted" if rule.noted else "refused", f"but {taken}: {rule.says}"])
    return _table(("key", "here", "how, or why not"), sorted(lines))


def _annotations() -> str:
    lines = [
        [f"`{name}`", "applied", f"`{rule.field}`" + (", added" if rule.adds else "")] for name, rule in APPLIED.items()
    ]
    lines += [[f"`{name}`", "refused", says] for name, says in FOREIGN.items()]
    return _table(("annotation, after `io.katacontainers.config.`", "here", "how, or why not"), sorted(lines))


# CRI's fields of a sandbox and a container (cri-api v1) -> the fields of config.json that containerd makes of them
# (internal/cri/server, its spec options), whose rule is theirs; or their rule, where they are no part of one.
_CRI: tuple[tuple[str, str], ...] = (
    ("PodSandboxConfig.hostname", "hostname"),
    ("PodSandboxConfig.dns_config", "mounts[].source"),
    ("PodSandboxConfig.port_mappings", "applied: CNI's, in the pod's network namespace on the host"),
    ("PodSandboxConfig.annotations", "annotations.*"),
    ("PodSandboxConfig.linux.cgroup_parent", "linux.cgroupsPath"),
    ("PodSandboxConfig.linux.sysctls", "linux.sysctl.*"),
    ("LinuxSandboxSecurityContext.namespace_options", "linux.namespaces[].path"),
    ("LinuxSandboxSecurityContext.run_as_user", "process.user.uid"),
    ("LinuxSandboxSecurityContext.supplemental_groups", "process.user.additionalGids"),
    ("LinuxSandboxSecurityContext.privileged", "linux.resources.devices[].allow"),
    ("LinuxSandboxSecurityContext.seccomp", "linux.seccomp.syscalls[].action"),
    ("LinuxSandboxSecurityContext.apparmor", "process.apparmorProfile"),
    ("LinuxSandboxSecurityContext.selinux_options", "process.selinuxLabel"),
    ("ContainerConfig.command, args", "process.args"),
    ("ContainerConfig.working_dir", "process.cwd"),
    ("ContainerConfig.envs", "process.env"),
    ("ContainerConfig.mounts", "mounts[].source"),
    ("Mount.uidMappings, gidMappings", "mounts[].uidMappings[].hostID"),
    ("Mount.propagation", "mounts[].options"),
    ("ContainerConfig.devices", "linux.devices[].path"),
    ("ContainerConfig.CDI_devices", "linux.devices[].path"),
    ("ContainerConfig.log_path, stdin, stdin_once, tty", "applied: containerd's, by the shim's streams"),
    ("ContainerConfig.stop_signal", "applied: containerd's, as Kill"),
    ("LinuxContainerResources.cpu_period, cpu_quota, cpu_shares", "linux.resources.cpu.quota"),
    ("LinuxContainerResources.memory_limit_in_bytes", "linux.resources.memory.limit"),
    ("LinuxContainerResources.memory_swap_limit_in_bytes", "linux.resources.memory.swap"),
    ("LinuxContainerResources.oom_score_adj", "process.oomScoreAdj"),
    ("LinuxContainerResources.cpuset_cpus", "linux.resources.cpu.cpus"),
    ("LinuxContainerResources.cpuset_mems", "linux.resources.cpu.mems"),
    ("LinuxContainerResources.hugepage_limits", "linux.resources.hugepageLimits[].limit"),
    ("LinuxContainerResources.unified", "linux.resources.unified.*"),
    ("LinuxContainerSecurityContext.capabilities", "process.capabilities.bounding"),
    ("LinuxContainerSecurityContext.privileged", "linux.resources.devices[].allow"),
    ("LinuxContainerSecurityContext.namespace_options", "linux.namespaces[].path"),
    ("LinuxContainerSecurityContext.selinux_options", "process.selinuxLabel"),
    ("LinuxContainerSecurityContext.run_as_user, run_as_group, run_as_username", "process.user.uid"),
    ("LinuxContainerSecurityContext.supplemental_groups", "process.user.additionalGids"),
    ("LinuxContainerSecurityContext.readonly_rootfs", "root.readonly"),
    ("LinuxContainerSecurityContext.no_new_privs", "process.noNewPrivileges"),
    ("LinuxContainerSecurityContext.masked_paths, readonly_paths", "linux.maskedPaths"),
    ("LinuxContainerSecurityContext.seccomp", "linux.seccomp.syscalls[].action"),
    ("LinuxContainerSecurityContext.apparmor", "process.apparmorProfile"),
)


def _cri() -> str:
    rules = dict(rows())
    lines = []
    for name, carried in _CRI:
        own, colon, says = carried.partition(": ")
        lines.append([f"`{name}`", own, says] if colon else [f"`{name}`", str(rules[own].handling), f"as `{own}`"])
    return _table(("field", "here", "by"), lines)


def tables() -> Mapping[str, str]:
    """Each table by its name in the document."""
    return {"fields": _fields(), "keys": _keys(), "annotations": _annotations(), "cri": _cri()}


def with_tables(text: str) -> str:
    """The document with the tables that there should be."""
    for name, table in tables().items():
        before, mark, rest = text.partition(f"<!-- table {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        assert mark, f"{DOCUMENT} has no place for the table {name}"
        assert end, f"the table {name} in {DOCUMENT} has no end"
        text = before + mark + table + "\n" + end + after
    return text


if __name__ == "__main__":
    made = with_tables(DOCUMENT.read_text())
    if "--write" in sys.argv:
        DOCUMENT.write_text(made)
    else:
        print(made)
