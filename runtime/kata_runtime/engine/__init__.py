"""The commands of an OCI runtime, as engines such as Podman call them: each a client of the sandbox's shim."""
