"""OCI: runtime configurations for the guest's crun, users of a root filesystem, bundles, and images."""
