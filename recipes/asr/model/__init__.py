"""The acoustic model: features, masks, blocks and their stack."""
