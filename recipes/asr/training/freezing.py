"""Parameters that training leaves as they are."""

import logging
from collections.abc import Sequence

from torch import nn

from lightning_novograd.errors import ConfigError
from lightning_novograd.optim.selection import NORM_TYPES, Uses, matching
from lightning_novograd.recipes.asr.training.module import CTCModule

log = logging.getLogger(__name__)

_PREFIX = "model."  # of the acoustic model's parameters in param_groups


def freeze(module: CTCModule, patterns: Sequence[str]) -> None:
    """Keep the parameters that patterns select out of the training, and the statistics of their norms.

    A norm of which all parameters are frozen is in eval mode from now on; Lightning leaves it so. Dropout stays.

    Args:
        module: with the weights that it begins with.
        patterns: shorthands and globs as in ``optim.param_groups``, over names as
            `encoder.encoder.0.mconv.0.conv.weight`, with or without ``model.`` before them.

    Raises:
        ConfigError: a glob matches nothing, nothing is left to train, or a rule of the optim block is for frozen
            parameters alone.
    """
    try:
        frozen = matching(module.model, [pattern.removeprefix(_PREFIX) for pattern in patterns], "freeze")
    except ConfigError as error:
        raise ConfigError("freeze", error.problem) from None
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    left = [parameter for parameter in module.model.parameters() if parameter.requires_grad]
    if not left:
        raise ConfigError("freeze", f"{', '.join(patterns)} select every parameter: nothing is left to train")
    _check_rules(module)
    norms = [norm for norm in module.model.modules() if isinstance(norm, NORM_TYPES) and _is_frozen(norm)]
    for norm in norms:
        norm.eval()
    log.info(
        "frozen: %d parameters in %d tensors, and the statistics of %d norms; %d parameters are trained",
        sum(parameter.numel() for parameter in frozen.values()),
        len(frozen),
        len(norms),
        sum(parameter.numel() for parameter in left),
    )


def _is_frozen(norm: nn.Module) -> bool:
    parameters = list(norm.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _check_rules(module: CTCModule) -> None:
    """Nothing is thawed here, so a rule for frozen parameters would never do anything.

    Raises:
        ConfigError: there is such a rule.
    """
    uses = Uses(module)
    trained = {use for parameter, indices in uses.of.items() if parameter.requires_grad for use in indices}
    for config in module.optim_configs.values():
        for rule in config.param_groups:
            if (selected := rule.selected(uses)) and selected.isdisjoint(trained):
                problem = f"{rule.label!r} matches only parameters that `freeze` keeps as they are; leave out the rule"
                raise ConfigError(f"{rule.path}.match" if rule.match else rule.path, problem)
