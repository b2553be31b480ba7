"""`containerd-shim-kata-v2` as the tests run it: from the source tree, by `support.containerd.write_shim`."""

import sys

from kata_runtime.shim.main import main

if __name__ == "__main__":
    sys.exit(main())
