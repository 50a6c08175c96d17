"""How examples are dealt to optimizer steps, ranks and micro-batches, and loaded."""
