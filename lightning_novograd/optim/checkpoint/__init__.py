"""NovoGrad's state, from and to other implementations."""

from lightning_novograd.optim.checkpoint.convert import convert_checkpoint, convert_state_dict, in_our_format
from lightning_novograd.optim.checkpoint.formats import FORMATS, detect_format

__all__ = ["FORMATS", "convert_checkpoint", "convert_state_dict", "detect_format", "in_our_format"]
