"""Asks sandboxes by their management sockets, and makes one text of what they say."""

import asyncio
import logging
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from kata_common import places
from kata_runtime.errors import SandboxError
from kata_runtime.http import OPENMETRICS
from kata_runtime.metrics.durations import Durations
from kata_runtime.monitor.pods import Pod

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

__all__ = ["Scraper", "ask"]

_log = logging.getLogger("kata.monitor")

# Seconds for a sandbox's answer; one that hangs must not cost the others their place in a scrape.
_TIMEOUT = 5.0
_MAX_ANSWER = 4 << 20
# Asked at a time.
_ABREAST = 8


async def ask(run_dir: Path, sandbox: str, path: str, accept: str = "*/*") -> str:
    """What a sandbox answers to GET `path`.

    Raises:
        SandboxError: it does not run, does not answer in time, or refuses.
    """
    try:
        # Its directory's name may leave no room for a socket's path.
        with ExitStack() as stack:
            directory = os.open(run_dir / sandbox, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, directory)
            async with asyncio.timeout(_TIMEOUT):
                status, body = await _get(f"/proc/self/fd/{directory}/{places.MANAGEMENT_SOCKET}", path, accept)
    except (OSError, TimeoutError, ValueError) as error:
        raise SandboxError(f"sandbox {sandbox} does not answer: {str(error) or 'in time'}") from error
    if status != HTTPStatus.OK:
        raise SandboxError(f"sandbox {sandbox} refuses {path}: {status}")
    return body.decode(errors="replace")


async def _get(socket: str, path: str, accept: str) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n".encode())
        answer = bytearray()
        while chunk := await reader.read(1 << 16):
            answer += chunk
            if len(answer) > _MAX_ANSWER:
                raise ValueError(f"more than {_MAX_ANSWER} bytes")
    finally:
        writer.close()
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body


class Scraper:
    """Counts what it does, and is a collector of the families `kata_monitor_*`."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._durations = Durations()
        self._scrapes = 0
        self._failures = 0
        self._running = 0

    async def scrape(
        self, sandboxes: Collection[str], pods: Mapping[str, Pod], wanted: Collection[str], *, openmetrics: bool
    ) -> str:
        """The families of these sandboxes, or those of them that are `wanted`, and our own."""
        begin = time.monotonic_ns()
        self._scrapes += 1
        self._running = len(sandboxes)
        limit = asyncio.Semaphore(_ABREAST)

        async def one(sandbox: str) -> tuple[str, str]:
            async with limit:
                try:
                    return sandbox, await ask(self._run_dir, sandbox, "/metrics", OPENMETRICS if openmetrics else "*/*")
                except SandboxError as error:
                    # Most often one that has just ended.
                    self._failures += 1
                    _log.info("%s", error)
                    return sandbox, ""

        answers = await asyncio.gather(*map(one, sandboxes))
        merged = await asyncio.to_thread(_Merged.of, answers, pods, openmetrics=openmetrics)
        self._failures += merged.broken
        self._durations.observe("", (time.monotonic_ns() - begin) / 1e6)
        return await asyncio.to_thread(self._text, merged, wanted, openmetrics=openmetrics)

    def _text(self, merged: "_Merged", wanted: Collection[str], *, openmetrics: bool) -> str:
        from prometheus_client import CollectorRegistry, ProcessCollector, exposition
        from prometheus_client.openmetrics import exposition as openmetrics_exposition

        registry = CollectorRegistry()
        registry.register(self)
        ProcessCollector(namespace="kata_monitor", registry=registry)
        registry.register(merged)
        chosen = CollectorRegistry()
        chosen.register(_Chosen(registry, wanted))
        text: bytes = (openmetrics_exposition if openmetrics else exposition).generate_latest(chosen)
        return text.decode()

    def collect(self) -> "Iterator[Metric]":
        """What Prometheus' exposition asks for."""
        from prometheus_client.metrics_core import GaugeMetricFamily, UnknownMetricFamily

        yield GaugeMetricFamily("kata_monitor_running_shim_count", "Sandboxes that run.", self._running)
        # Kata's names; a counter's would end in _total.
        yield UnknownMetricFamily("kata_monitor_scrape_count", "Scrapes of this monitor.", self._scrapes)
        yield UnknownMetricFamily(
            "kata_monitor_scrape_failed_count", "Sandboxes that failed to answer.", self._failures
        )
        yield self._durations.family(
            "kata_monitor_scrape_durations_histogram_milliseconds", "What asking all sandboxes took.", labels=()
        )


class _Chosen:
    """The families of a registry, or those that are `wanted`, by their names or by those of their samples."""

    def __init__(self, registry: "CollectorRegistry", wanted: Collection[str]) -> None:
        self._registry = registry
        self._wanted = wanted

    def collect(self) -> "Iterator[Metric]":
        for metric in self._registry.collect():
            names = {metric.name, *(sample.name for sample in metric.samples)}
            if not self._wanted or not names.isdisjoint(self._wanted):
                yield metric


class _Merged:
    """Families of several sandboxes, each with their samples."""

    def __init__(self) -> None:
        self._families: dict[str, Metric] = {}
        # Answers that were none.
        self.broken = 0

    @classmethod
    def of(cls, answers: Collection[tuple[str, str]], pods: Mapping[str, Pod], *, openmetrics: bool) -> "_Merged":
        """Of the answers of sandboxes by their ids, "" of one that has failed."""
        from prometheus_client import parser
        from prometheus_client.openmetrics import parser as openmetrics_parser

        found = cls()
        parse = (openmetrics_parser if openmetrics else parser).text_string_to_metric_families
        for sandbox, text in answers:
            labels = {"sandbox_id": sandbox, **pods.get(sandbox, Pod()).labels}
            # A guest may say the same twice, and Prometheus would refuse what follows.
            said: set[tuple[str, frozenset[tuple[str, str]]]] = set()
            try:
                for metric in parse(text) if text else ():
                    found._add(metric, labels, said)
            except ValueError as error:
                found.broken += 1
                _log.warning("sandbox %s says something else than metrics: %s", sandbox, error)
        return found

    def _add(
        self, metric: "Metric", labels: Mapping[str, str], said: set[tuple[str, frozenset[tuple[str, str]]]]
    ) -> None:
        known = self._families.get(metric.name)
        samples = []
        for sample in metric.samples:
            series = sample.name, frozenset(sample.labels.items())
            if series not in said:
                said.add(series)
                samples.append(sample._replace(labels={**sample.labels, **labels}))
        if known is None:
            metric.samples = samples
            self._families[metric.name] = metric
        elif known.type == metric.type:  # else of another version of ours
            known.samples += samples

    def collect(self) -> "Iterator[Metric]":
        """What Prometheus' exposition asks for."""
        yield from self._families.values()
