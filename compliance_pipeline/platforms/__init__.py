"""What we need of a contact-center platform (`port`) and the adapters that provide it."""
