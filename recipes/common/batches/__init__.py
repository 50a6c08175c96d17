"""The global batch of a run: how it is split, and what it does to the learning rate, the steps and the memory."""
