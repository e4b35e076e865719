"""Metrics and logs, the same in every process."""
