"""Flags compliance violations in contact-center recordings."""
