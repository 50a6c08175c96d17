"""The Lightning side: all that knows modules, trainers and checkpoints."""
