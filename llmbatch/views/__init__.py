"""What people see: the live bar, plain lines, the summary."""
