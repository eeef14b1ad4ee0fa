"""The windows that messages leave through: one file per provider, all behind one Channel protocol."""
