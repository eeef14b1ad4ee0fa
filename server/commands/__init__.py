"""What `python -m server` can do: one file per command."""
