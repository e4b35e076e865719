"""The edge: OpenAI-compatible REST, edge gRPC, media, feedback and the console, in one process.

`dataplane` knows no transport; `routes/*` and `edge` convert to and from it.
"""
