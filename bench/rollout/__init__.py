"""Rollouts on a real API server: three real replicas under load, and simulated fleets of up to a thousand."""
