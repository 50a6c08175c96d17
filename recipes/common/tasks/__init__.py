"""Tasks that are a table of examples, a small model and one number to get down."""
