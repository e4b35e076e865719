"""The demo: a client that asks, criticises, waits, and asks again, through REST alone.

It knows the reference world (prompts, exact judges, an annotator); the services and the trainer it drives do not.
"""
