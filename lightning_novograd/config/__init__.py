"""The optim block: from any mapping to checked data, and from there to objects."""
