"""How a run ends before its time, and goes on as if it had not."""
