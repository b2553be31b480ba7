"""The sandbox and its containers: crun, cgroups, shared namespaces. Knows nothing of gRPC."""
