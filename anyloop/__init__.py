"""AnyLoop: serve an any-to-any model and keep aligning it from what people say about its answers."""

__version__ = "0.1.0"
