"""Tests that mount: each in a process whose mount namespace is its own, so that nothing of it is left."""

import functools
import os
import traceback
from collections.abc import Callable
from typing import ParamSpec

import pytest

from kata_runtime.mount import private_mount_namespace

__all__ = ["own_mounts"]

P = ParamSpec("P")


def own_mounts(test: Callable[P, None]) -> Callable[P, None]:
    """Run a test in a child with a mount namespace of its own, as the runtime; needs root."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                private_mount_namespace()
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
