"""The gate: a process of its own that evaluates candidates on a suite and promotes or rejects them, with a reason."""
