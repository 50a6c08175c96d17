"""A trained model, used and measured: runs afterwards, recognizers, evaluation."""
