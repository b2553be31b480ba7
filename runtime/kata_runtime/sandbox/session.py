"""One sandbox from its configuration to the last span of its trace, for whoever drives it: a command, or a shim."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Self

from kata_runtime.config import Config, load
from kata_runtime.config.annotations import with_annotations
from kata_runtime.sandbox.sandbox import Sandbox, SandboxOptions
from kata_runtime.sandbox.trace import SandboxTrace
from kata_telemetry.span import Level, Site, Span, use

__all__ = ["Session", "configured"]

_trace = Site(package="containerdshim", subsystem="session")
_log = logging.getLogger("kata.config")
_NEVER_STARTED, _KILLED = "never started", "killed"


def configured(path: Path | None, annotations: Mapping[str, str], *, apart: bool = False) -> Config:
    """The configuration (that of `path`, if given) as a pod with these annotations wants it; `apart` as in `load`.

    Raises:
        ConfigError: it can't be used, or an annotation can't.
    """
    config = with_annotations(load(path, apart=apart), annotations)
    for note in config.notes:
        _log.info("not applied of the configuration: %s", note)
    return config


class Session:
    """A sandbox and its trace. The first thing that is said of its end (`conclude`) is what the trace tells.

    Use `open`, then at most once `make` and `start`, then `stop` in any case, and `close` when nothing more happens.
    """

    def __init__(self, config: Config, sandbox_id: str, trace: SandboxTrace) -> None:
        self.config = config
        self.id = sandbox_id
        self.trace = trace
        self.sandbox: Sandbox | None = None
        self._outcome = _NEVER_STARTED
        self._failure: BaseException | None = None

    @classmethod
    def open(
        cls,
        config: Config,
        sandbox_id: str,
        *,
        command: str,
        start: int,
        carrier: Iterable[tuple[str, str]] | None = None,
    ) -> Self:
        """Begin the sandbox's trace, see `SandboxTrace.open`; nothing runs yet.

        Raises:
            HostError: the trace can't be kept.
            ConfigError: a sampler that isn't there.
        """
        trace = SandboxTrace.open(config, sandbox_id, command=command, start=start, carrier=carrier)
        return cls(config, sandbox_id, trace)

    @property
    def root(self) -> Span:
        """The root of the trace."""
        return self.trace.root

    def tell(self, site: Site, *stages: tuple[str, int, int]) -> None:
        """Spans (name, begin, end: CLOCK_MONOTONIC, ns) of what was before there was a trace; the last one is that in
        which the configuration was read.
        """
        with use(self.root):
            for name, begin, end in stages[:-1]:
                site.record(name, begin, end, level=Level.ESSENTIAL)
            name, begin, end = stages[-1]
            site.record(name, begin, end, level=Level.ESSENTIAL, files=self.config.describe_files())

    def make(self, options: SandboxOptions) -> Sandbox:
        """The sandbox; nothing of it runs yet."""
        self.sandbox = Sandbox(self.id, self.config, self.trace, options.from_environment(self.id))
        return self.sandbox

    async def start(self) -> None:
        """Boot it.

        Raises:
            KataError: with the reason; the sandbox has ended then.
        """
        assert self.sandbox is not None
        await self.sandbox.start()
        self._outcome = _KILLED

    def conclude(self, outcome: str, failure: BaseException | None = None) -> None:
        """How it ended, in a word or two, and why."""
        if self._outcome in (_NEVER_STARTED, _KILLED):
            self._outcome, self._failure = outcome, failure

    async def stop(self, then: Callable[[], Awaitable[None]] | None = None) -> None:
        """End the sandbox, if there is one, and do what is left to do; the trace is told first why."""
        if self._failure is not None:
            await self.trace.failing(self._failure)
        if self.sandbox is not None:
            with use(self.root), _trace.stage("Stop"):
                await self.sandbox.stop()
                if then is not None:
                    await then()

    def close(self) -> None:
        """End the trace."""
        self.trace.close(self._outcome, self._failure)
