"""Files of checkpoints: how they are read and written, and which a run keeps."""
