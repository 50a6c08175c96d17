"""What checkpoints bring, and what they may not."""
