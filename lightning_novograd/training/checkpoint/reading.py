"""Checkpoints and files of hyper-parameters, read as Lightning reads them."""

from typing import Any

from yaml import YAMLError

from lightning_novograd.errors import DataError
from lightning_novograd.optim.checkpoint.files import why_not_plain


def loaded(saving: Any, file: Any, weights_only: bool | None) -> dict[str, Any]:
    """A checkpoint without its weights."""
    try:
        saved = saving.pl_load(file, map_location="meta", weights_only=weights_only)
    except OSError:
        raise
    except Exception as error:
        if weights_only is False:
            raise
        # torch's own message is a page, and ends in advice to run the code of the file
        raise DataError(f"{file} is no checkpoint, or holds more than plain data{why_not_plain(error)}") from error
    if not isinstance(saved, dict):
        raise DataError(f"{file}: expected a dict of a checkpoint, found {type(saved).__name__}")
    return saved


def loaded_hparams(saving: Any, file: Any, where: Any) -> Any:
    """The hyper-parameters of a file of Lightning's; what is wrong with its name Lightning says."""
    try:
        if str(file).lower().endswith(".csv"):
            return saving.load_hparams_from_tags_csv(file)
        return saving.load_hparams_from_yaml(file) if str(file).lower().endswith((".yml", ".yaml")) else {}
    except YAMLError as error:
        raise DataError(f"{where} is not plain YAML: {' '.join(str(error).split())}") from error
