"""OCI hooks that run on the host: engines set networks up by them (nerdctl, Docker before 26).

config.md of the OCI runtime specification, "POSIX-platform Hooks". They are told the VM's process id for the
container's. `createContainer` is a program of the host, too, that would run in the container's namespaces; as in Kata's
runtime-rs it runs in the runtime's. `startContainer` is one of the container's, and crun's to run.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kata_runtime.errors import HostError, SandboxError
from kata_runtime.oci.spec import OCI_VERSION
from kata_runtime.process import describe, run_foreign
from kata_telemetry.span import Site

__all__ = ["AFTER_END", "AFTER_START", "BEFORE_START", "NO_HOOKS", "HookState", "Hooks", "run_hooks"]

_trace = Site(package="katautils", subsystem="hook")
_log = logging.getLogger("kata.hooks")

# Between a container's creation and its start; the first is the older name of the second.
BEFORE_START = ("prestart", "createRuntime", "createContainer")
AFTER_START, AFTER_END = ("poststart",), ("poststop",)
# Seconds for a hook that names no limit: the specification has none, and a hook must not hold up a pod for ever.
_TIMEOUT = 60.0


@dataclass(frozen=True)
class HookState:
    """What a hook is told on its stdin; `status` is the specification's word."""

    id: str
    status: str
    pid: int
    bundle: str
    annotations: Mapping[str, str]

    def dump(self) -> bytes:
        """The state's JSON."""
        return json.dumps({"ociVersion": OCI_VERSION, **vars(self), "annotations": dict(self.annotations)}).encode()


@dataclass(frozen=True)
class Hooks:
    """Those of one container: `listed` by their kinds, checked; the rest is for their state."""

    listed: Mapping[str, Any]
    id: str
    bundle: str
    annotations: Mapping[str, str]

    @classmethod
    def of(cls, spec: Mapping[str, Any], container_id: str, bundle: object) -> "Hooks":
        """Those of a specification."""
        return cls(spec.get("hooks") or {}, container_id, str(bundle), spec.get("annotations") or {})

    async def run(self, kinds: Sequence[str], status: str, pid: int, *, strict: bool = False) -> None:
        """Run those of these kinds; `status` is the container's, in OCI's words, `pid` the VM's.

        Raises:
            SandboxError: with `strict`, one failed.
        """
        if self.listed:
            state = HookState(self.id, status, pid, self.bundle, self.annotations)
            await run_hooks(self.listed, kinds, state, strict=strict)


NO_HOOKS = Hooks({}, "", "", {})


async def run_hooks(hooks: Mapping[str, Any], kinds: Sequence[str], state: HookState, *, strict: bool) -> None:
    """Run the hooks of these kinds, which `read_bundle` has checked, one after another.

    Raises:
        SandboxError: with `strict`, one failed; those after it are not run then. Else failures are logged.
    """
    for kind in kinds:
        listed = hooks.get(kind) or ()
        if not listed:
            continue
        with _trace.span("runHooks", type=kind, hooks=len(listed)):
            for hook in listed:
                try:
                    await _run(kind, hook, state)
                except (HostError, SandboxError) as error:
                    if strict:
                        raise
                    _log.warning("%s", error)


async def _run(kind: str, hook: Mapping[str, Any], state: HookState) -> None:
    path, timeout = str(hook["path"]), float(hook.get("timeout") or _TIMEOUT)
    arguments = [str(word) for word in hook.get("args") or (path,)]
    environment = dict(str(entry).partition("=")[::2] for entry in hook.get("env") or ())
    with _trace.span("runHook", path=path):
        try:
            # Programs that are several look at their argv[0], as Docker's libnetwork-setkey.
            status, said = await run_foreign(
                path, arguments, data=state.dump(), environment=environment, timeout=timeout
            )
        except TimeoutError:
            raise SandboxError(f"{kind} hook {path} did not end within {timeout:g} s") from None
    if status != 0:
        raise SandboxError(f"{kind} hook {path} failed ({describe(status)})" + (f": {said}" if said else ""))
