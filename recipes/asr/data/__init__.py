"""From a manifest line to a batch."""
