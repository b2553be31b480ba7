"""A sandbox: one VM, its agent, and the containers in it."""
