"""A run: settings, the Lightning module with its loss, callbacks; and a trained model, measured or used."""
