"""What recipes share whose tasks are a table of examples, a small model and one number to get down."""
