"""Long searches for a broken promise. Each has a short form in the suite and a long one, `make campaign-NAME`."""
