"""Dialects: messages in and out, no I/O."""
