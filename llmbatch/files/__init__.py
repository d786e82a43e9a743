"""Disk: reading the input, the journal, the sealed output."""
