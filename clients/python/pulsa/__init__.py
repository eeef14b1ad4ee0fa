"""Calls Pulsa from Python: generated stubs, and a thin typed client over them."""
