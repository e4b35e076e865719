"""The gate: a process of its own that evaluates candidates on a suite, and lets them pass or not, with a reason."""
