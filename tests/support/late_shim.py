"""The shim under an engine that sets the network up between Create and Start, as Docker 26 and `ctr run --cni` do.

`$KATA_TEST_ENGINE PID` is run with the process id that Create has answered.
"""

import asyncio
import os
import subprocess
import sys

from kata_protos.containerd import task_pb2 as task
from kata_runtime.shim.main import main
from kata_runtime.shim.tasks import KataTasks

_start = KataTasks.start


async def _late(self: KataTasks, request: task.StartRequest) -> task.StartResponse:
    if not request.exec_id:
        state = await self.state(task.StateRequest(id=request.id))
        await asyncio.to_thread(subprocess.run, [os.environ["KATA_TEST_ENGINE"], str(state.pid)], check=True)
    return await _start(self, request)


if __name__ == "__main__":
    KataTasks.start = _late  # type: ignore[method-assign]
    sys.exit(main())
