"""OTPs: sending, verifying, delivery, limits, usage and retention."""
