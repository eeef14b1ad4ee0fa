"""The room of codes, admission, sending, verifying and limits."""
