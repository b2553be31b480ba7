"""Containers and processes: crun, stdio, cgroups, mounts. Knows nothing of gRPC."""
