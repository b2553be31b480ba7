"""Tests that mount: each in a process whose mount namespace is its own, so that nothing of it is left."""

import functools
import os
import traceback
from collections.abc import Callable
from typing import ParamSpec

import pytest

from kata_common import linux
from kata_common.linux import MountFlag

__all__ = ["leave_the_hosts_mounts", "own_mounts"]

P = ParamSpec("P")


def leave_the_hosts_mounts() -> None:
    """A mount namespace of its own, wherever this is: a runtime stays in that of a host whose `/` shares nothing."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", "", MountFlag.REC | MountFlag.SLAVE)


def own_mounts(test: Callable[P, None]) -> Callable[P, None]:
    """Run a test in a child with a mount namespace of its own; needs root."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                leave_the_hosts_mounts()
                test(*args, **kwargs)
            except BaseException:
                os.write(write, traceback.format_exc().encode()[-60_000:])
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as told:
            failure = told.read().decode(errors="replace")
        _, status = os.waitpid(child, 0)
        assert status == 0
        if failure:
            pytest.fail(failure, pytrace=False)

    return pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")(run)
