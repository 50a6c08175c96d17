"""The subcommands of `python -m lightning_novograd`."""
