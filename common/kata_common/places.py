"""Where things are on the host, for those who look for each other's. Imports nothing: `delete` is in a hurry."""

# A directory for each sandbox that lives: sockets, logs, its lock. Root's alone. Kata's place.
RUN_DIR = "/run/kata"
# The socket of this host's pool, wherever it is configured to be; no sandbox is called so.
POOL = f"{RUN_DIR}/.pool"
STATE_DIR = "/var/lib/kata-containers"
# Writable layers of root file systems, a directory for each sandbox.
LAYERS_DIR = f"{STATE_DIR}/sandboxes"
TRACE_DIR = f"{STATE_DIR}/traces"
IMAGE_DIR = f"{STATE_DIR}/image"
# In a sandbox's directory. Any id is short enough for them (tests/unit/common/test_ids.py).
VSOCK_SOCKET = "vsock.sock"
AGENT_SOCKET = "agent.sock"
VIRTIOFSD_SOCKET = "virtiofs.sock"
# Kata's name.
MANAGEMENT_SOCKET = "shim-monitor.sock"
# Ours: for who wants to be in a container, with descriptors.
CONTROL_SOCKET = "control.sock"
# Of hybrid vsock: port N of the host is `vsock.sock_N` in a directory of its own. It has to be reached by a descriptor
# or as working directory, for an id may leave no room for it in a socket's path.
PORTS = "ports"
