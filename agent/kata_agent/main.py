"""The agent's entry point, and PID 1 of the guest.

Imports are the cold start here (an emulated guest runs them at a tenth of a host's speed): until the first line is in
the kernel's log nothing is imported but that line and what Python has loaded anyway.
"""

import os
import time

from kata_common import marks


def main() -> None:
    """`kata-agent`: as PID 1 it runs the guest and switches it off; it never returns then.

    Elsewhere: `kata-agent --unix DIR` serves on unix sockets in DIR, for development.
    """
    if os.getpid() != 1:
        from kata_agent.server import diet

        diet.apply()
        from kata_agent.server import outside

        raise SystemExit(outside.main())
    _say("/dev/kmsg", f"<6>{marks.AGENT_START}\n".encode())
    started = time.monotonic_ns()
    reason = "the agent ended"
    try:
        from kata_agent.server import diet

        diet.apply()
        from kata_agent.server import boot, init

        reason = init.main(boot.Boot(started))
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        _explain(error)
    _say("/dev/console", f"{marks.POWER_OFF}{reason}\n".encode("utf-8", "replace")[:1024])
    os.sync()
    try:
        from kata_common.linux import power_off

        power_off()
    finally:
        # PID 1 that exits is a kernel panic, and that is the end as well.
        os._exit(1)


def _say(path: str, line: bytes) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(fd, line)
    except OSError:
        pass
    finally:
        os.close(fd)


def _explain(error: BaseException) -> None:
    """The traceback, one console line for each of its own."""
    try:
        import traceback

        text = "".join(traceback.format_exception(error))
        _say("/dev/console", text.encode("utf-8", "replace")[-4096:])
    except Exception:  # noqa: S110 - the reason is said in any case
        pass


if __name__ == "__main__":
    main()
