"""What is scored, on what, and whether a difference is one."""
