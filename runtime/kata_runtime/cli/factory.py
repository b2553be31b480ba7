"""`kata-runtime factory`: templates by hand."""

import argparse
import asyncio
import json
import os
import time
from dataclasses import replace
from pathlib import Path

from kata_runtime.config import load
from kata_runtime.config.model import Config
from kata_runtime.errors import HostError, TemplateError

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The commands of `factory`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    init = commands.add_parser("init", help="make the template of this configuration, if there is none that is whole")
    init.add_argument("--force", action="store_true", help="make it again")
    init.add_argument("--trace", action="store_true", help="keep the trace of its boot and rehearsal")
    init.set_defaults(run=_init)
    status = commands.add_parser("status", help="say which templates there are")
    status.add_argument("--json", action="store_true", help="as JSON")
    status.set_defaults(run=_status)
    commands.add_parser("serve", help="keep guests running for those who start, until SIGTERM").set_defaults(run=_serve)
    commands.add_parser("destroy", help="remove all templates").set_defaults(run=_destroy)


def _config(options: argparse.Namespace) -> Config:
    if os.geteuid() != 0:
        raise HostError("kata-runtime factory needs root", hint="sudo kata-runtime factory …")
    return load(Path(options.config) if options.config else None)


def _image_dir() -> Path:
    from kata_runtime.sandbox.sandbox import SandboxOptions

    return SandboxOptions().from_environment("").image_dir


def _init(options: argparse.Namespace) -> int:
    from kata_runtime.mount import private_mount_namespace
    from kata_runtime.sandbox.template.maker import find_template, make_template

    config = _config(options)
    if not config.factory.enable_template:
        hint = "set [factory] enable_template = true"
        raise TemplateError("the configuration wants no templates, so no start would use one", hint=hint)
    if options.trace:
        config = replace(config, runtime=replace(config.runtime, enable_tracing=True))
    image_dir = _image_dir()
    if not options.force and (known := find_template(config, image_dir)):
        print(f"template {known.key[:12]} is there")
        return 0
    private_mount_namespace()
    begin = time.monotonic()
    meta = asyncio.run(make_template(config, image_dir, anew=options.force))
    print(f"template {meta.key[:12]} made in {time.monotonic() - begin:.1f} s, {_size(meta.taken)}")
    return 0


def _status(options: argparse.Namespace) -> int:
    from kata_runtime.sandbox.template.store import TemplateStore

    config = _config(options)
    store = TemplateStore.at(config.factory.template_path)
    found = store.all()
    if options.json:
        listed = [
            {"key": key, "error": str(meta)}
            if isinstance(meta, TemplateError)
            else {"key": key, "made": meta.made, "memory": meta.memory, "vcpus": meta.vcpus, "stale": meta.stale,
                  "bytes": meta.taken}
            for key, meta in found
        ]  # fmt: skip
        print(
            json.dumps({"enabled": config.factory.enable_template, "path": str(store.directory), "templates": listed})
        )
        return 0
    print(f"templates in {store.directory}: {len(found) or 'none'}")
    if not config.factory.enable_template:
        print("they are not used: [factory] enable_template = false")
    for key, meta in found:
        if isinstance(meta, TemplateError):
            print(f"{key[:12]}  broken: {meta}")
            continue
        made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(meta.made))
        state = "stale" if meta.stale else "whole"
        print(f"{key[:12]}  {state}, {meta.vcpus} CPU, {meta.memory} MiB, takes {_size(meta.taken)}, made {made}")
    return 0


def _serve(options: argparse.Namespace) -> int:
    from kata_runtime.pool.server import serve

    asyncio.run(serve(_config(options), _image_dir()))
    return 0


def _destroy(options: argparse.Namespace) -> int:
    from kata_runtime.sandbox.template.store import TemplateStore

    count = TemplateStore.at(_config(options).factory.template_path).destroy()
    print(f"{count} {'template' if count == 1 else 'templates'} removed")
    return 0


def _size(count: int) -> str:
    return f"{count >> 20} MiB"
