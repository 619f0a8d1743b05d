"""The first version of the protocol: store.proto, and what `python -m serving.stubs` makes of it."""
