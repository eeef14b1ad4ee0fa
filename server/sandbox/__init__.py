"""The playground: stand-ins for a machine with no accounts anywhere; only `dev` and tests enter."""
