"""Boundaries as the Berkeley benchmark measures them: suppression, thinning, one-to-one correspondence. No torch."""
