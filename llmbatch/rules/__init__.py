"""Decisions: pure functions and small state machines. No loop, no clock, no chance, no disk."""
