"""Learning rates that fall from layer to layer: how deep in a module its parameters stand."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from lightning_novograd.errors import ConfigError, choices
from lightning_novograd.optim.wrappers import unwrapped

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class LayerDecay:
    r"""A learning rate that is smaller the further a layer is from the output.

    With :math:`L` layers, layer :math:`i` from the input (:math:`0 \le i < L`) has :math:`\gamma_i = \gamma d^{L-1-i}`.

    Args:
        decay: :math:`d`, in (0, 1].
        layers: how the layers are found: "auto" (`layer_names`), the name of a method of the module that returns
            :math:`i` for the name of a parameter, or globs over parameter names, one per layer from input to output;
            what no glob matches stands with the output.
        path: where the config has it.

    Clark et al., *ELECTRA*, https://arxiv.org/abs/2003.10555; timm and mmengine have it by the same name.

    """

    decay: float
    layers: str | tuple[str, ...] = AUTO
    path: str = "optim.layer_decay"

    def scales(self, module: nn.Module, names: Iterable[str]) -> dict[str, float]:
        """What the learning rate of each parameter is multiplied with.

        Args:
            module: that has the parameters.
            names: of the parameters, in the module's order.

        Raises:
            ConfigError: a glob matches no parameter, or the module has no such method, or it returns no index.

        """
        names = list(names)
        depths = self._depths(module, names)
        last = max(depths.values(), default=0)
        return {name: self.decay ** (last - depth) for name, depth in depths.items()}

    def _depths(self, module: nn.Module, names: list[str]) -> dict[str, int]:
        if self.layers == AUTO:
            layers = layer_names(module, names)
            indices = {layer: index for index, layer in enumerate(dict.fromkeys(layers.values()))}
            return {name: indices[layer] for name, layer in layers.items()}
        if isinstance(self.layers, str):
            return self._depths_by_method(module, names)
        for glob in self.layers:
            if not any(fnmatchcase(name, glob) for name in names):
                raise ConfigError(f"{self.path}.layers", f"{glob!r} matches no parameter{choices(glob, names)}")
        return {
            name: next((i for i, glob in enumerate(self.layers) if fnmatchcase(name, glob)), len(self.layers))
            for name in names
        }

    def _depths_by_method(self, module: nn.Module, names: list[str]) -> dict[str, int]:
        method = getattr(module, str(self.layers), None)
        where = f"{self.path}.layers"
        if not callable(method):
            problem = f"{type(module).__name__} has no method {self.layers!r}; allowed: auto, a list of globs"
            raise ConfigError(where, f"{problem}, or the name of a method that returns a parameter's layer")
        depths = {name: method(name) for name in names}
        for name, depth in depths.items():
            if type(depth) is not int or depth < 0:
                problem = f"{type(module).__name__}.{self.layers}({name!r}) returned {depth!r}"
                raise ConfigError(where, f"{problem}; expected the layer's index, 0 at the input")
        return depths


def layer_names(module: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """The layer that each parameter belongs to, by name.

    A layer is an element of the outermost Sequential or ModuleList on the way to the parameter, or of one that is
    itself such an element; without one, it is the module that owns the parameter.

    Args:
        module: that has the parameters.
        names: of the parameters.

    Example:
        >>> blocks = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> model = nn.ModuleDict({"embed": nn.Embedding(3, 2), "blocks": blocks})
        >>> list(layer_names(model, [name for name, _ in model.named_parameters()]).values())
        ['embed', 'blocks.0', 'blocks.0', 'blocks.1', 'blocks.1']

    """
    return {name: _layer_of(module, name.split(".")[:-1]) for name in names}


def _layer_of(module: nn.Module, owners: list[str]) -> str:
    """The name of the layer on the way through submodules called `owners`."""
    module, inside = unwrapped(module), False  # a Sequential or ModuleList
    for depth, owner in enumerate(owners):
        is_container = isinstance(module, nn.Sequential | nn.ModuleList)
        if inside and not is_container:
            return ".".join(owners[:depth])
        inside = is_container
        module = unwrapped(module.get_submodule(owner))
    return ".".join(owners)
