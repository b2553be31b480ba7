"""Generated stubs of the services between containerd and a shim. Regenerate with `nox -s protos`."""
