"""The acoustic model: features, masks on them, an encoder of Jasper blocks, a decoder."""
