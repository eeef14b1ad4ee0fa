"""Python client of Pulsa: generated stubs, and a thin typed client that uses them."""
