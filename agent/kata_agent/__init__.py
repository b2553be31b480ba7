"""Guest side: the agent that runs as PID 1 and manages the workload."""
