"""What may name a sandbox, a container or a process, and what becomes of a name: directories, sockets, a host name.

The bounds stand together because each limits the others: whatever is a valid id must have a place in all of them.
Imports nothing: the vsock backend and the shim's short commands are in a hurry.
"""

__all__ = ["MAX_HOSTNAME", "MAX_ID", "MAX_SOCKET_PATH", "RULE", "hostname_of", "is_hostname", "is_id"]

# containerd's own (pkg/identifiers): no path can be made of one.
MAX_ID = 76
RULE = f"letters and digits, single '.', '_' or '-' between them, at most {MAX_ID} characters"
# Bytes: sun_path of unix(7) without the zero at its end.
MAX_SOCKET_PATH = 107
# Bytes (sethostname(2), __NEW_UTS_LEN).
MAX_HOSTNAME = 64


def is_id(text: str) -> bool:
    """Whether `text` may name a sandbox, a container or an exec'd process."""
    words = text.replace("_", ".").replace("-", ".").split(".")
    return len(text) <= MAX_ID and text.isascii() and all(word.isalnum() for word in words)


def is_hostname(text: str) -> bool:
    """Whether Linux takes it; what else a host name should be is not its concern."""
    return len(text.encode(errors="surrogateescape")) <= MAX_HOSTNAME and "\0" not in text


def hostname_of(sandbox_id: str) -> str:
    """The host name of a sandbox that is given none: its id, as far as Linux takes it."""
    return sandbox_id[:MAX_HOSTNAME].rstrip("._-")
