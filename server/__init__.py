"""Pulsa: sells OTP credits and spends them."""
