"""Answers prompts with the policy model: the engine, its program, and the gRPC service around it."""
