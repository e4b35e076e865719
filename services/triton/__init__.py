"""The Triton model repository of AnyLoop, and the launcher of the Triton binary that the PyPI wheel carries."""
