"""The machine that containers run in: what PID 1 mounts, its clock, its network, the mounts that the host asks for."""
