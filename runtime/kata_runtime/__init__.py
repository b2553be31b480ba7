"""Host side: the runtime that boots a guest and drives its agent."""
