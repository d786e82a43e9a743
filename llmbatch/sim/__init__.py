"""A simulated provider on loopback, written from the documentation and not from our encoder."""
