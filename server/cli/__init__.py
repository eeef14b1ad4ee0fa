"""The commands of `python -m server`, but for `dev` and `demo`, which are in server.sandbox."""
