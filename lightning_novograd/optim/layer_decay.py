"""Learning rates that fall from layer to layer: how deep in a module its parameters stand."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from lightning_novograd.errors import ConfigError, choices, closest
from lightning_novograd.optim.selection import Names
from lightning_novograd.optim.wrappers import unwrapped

AUTO = "auto"

# Whose methods are never called, and none that overrides one of theirs: `forward`, `training_step`
_FRAMEWORKS = ("torch", "lightning", "lightning_fabric", "pytorch_lightning", "lightning_novograd.training")
# What words in the names of parameters that come before all blocks begin with: `cls_token`, `pos_embed`
_FIRST = ("token", "embed", "pos")


@dataclass(frozen=True, kw_only=True)
class LayerDecay:
    r"""A learning rate that is smaller the further a layer is from the output.

    With :math:`L` layers, layer :math:`i` from the input (:math:`0 \le i < L`) has :math:`\gamma_i = \gamma d^{L-1-i}`.

    Args:
        decay: :math:`d`, in (0, 1].
        layers: how the layers are found: "auto" (`layer_names`), the name of a public method that the module's own
            class defines and that returns :math:`i` for the name of a parameter, or globs over parameter names, one
            per layer from input to output; what no glob matches stands with the output.
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
            ConfigError: a glob matches no parameter, or the module's class has no such method of its own, or it raises
                or returns no index.

        """
        names = list(names)
        depths = self._depths(module, names)
        last = max(depths.values(), default=0)
        return {name: self.decay ** (last - depth) for name, depth in depths.items()}

    def _depths(self, module: nn.Module, names: list[str]) -> dict[str, int]:
        if self.layers == AUTO:
            layers = layer_names(module, names)
            indices = {layer: index for index, layer in enumerate(dict.fromkeys(layers.values()))}
            return {name: indices[layers[name]] for name in names}
        if isinstance(self.layers, str):
            return self._depths_by_method(module, names)
        found = Names(names)
        depths = dict.fromkeys(names, len(self.layers))
        for depth, glob in reversed([*enumerate(self.layers)]):
            matches = found.matching(glob)
            if not matches:
                raise ConfigError(f"{self.path}.layers", f"{glob!r} matches no parameter{choices(glob, names)}")
            depths.update({names[index]: depth for index in matches})
        return depths

    def _depths_by_method(self, module: nn.Module, names: list[str]) -> dict[str, int]:
        where, kind = f"{self.path}.layers", type(module).__name__
        methods = _own_methods(unwrapped(module))
        if self.layers not in methods:
            best = closest(self.layers, [AUTO, *methods])
            hint = "" if best is None else f"; did you mean {best!r}?"
            allowed = "auto, a list of globs, or the name of a public method that its class itself defines"
            problem = f"{kind} has no method {self.layers!r} of its own{hint or '.'} Allowed: {allowed}"
            raise ConfigError(where, f"{problem}, which takes a parameter's name and returns its layer")
        depths: dict[str, int] = {}
        for name in names:
            try:
                depth = methods[self.layers](name)
            except Exception as error:
                problem = f"{kind}.{self.layers}({name!r}) raised {type(error).__name__}: {error}"
                raise ConfigError(where, problem) from error
            if type(depth) is not int or depth < 0:
                problem = f"{kind}.{self.layers}({name!r}) returned {depth!r}"
                raise ConfigError(where, f"{problem}; expected the layer's index, 0 at the input")
            depths[name] = depth
        return depths


def _own_methods(module: nn.Module) -> dict[str, Callable[[str], Any]]:
    """The methods that a config may ask for: public ones of the model's own class, nothing that it inherits.

    Found in the class, so that no property is evaluated. torch derives classes of its own from the model's (FSDP2).
    """
    classes = type(module).__mro__
    frameworks = [cls for cls in classes if _is_framework(cls)]
    own: type | None = next((cls for cls in classes[:-1] if cls not in frameworks), None)
    return {
        name: method.__get__(module, type(module))
        for name, method in (vars(own).items() if own is not None else ())
        if isinstance(method, FunctionType | staticmethod | classmethod)
        and not name.startswith("_")
        and not any(name in vars(cls) for cls in frameworks)
    }


def _is_framework(cls: type) -> bool:
    return any(f"{cls.__module__}.".startswith(f"{name}.") for name in _FRAMEWORKS)


def layer_names(module: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """The layer that each parameter belongs to, by name, from input to output.

    The elements of the outermost Sequential or ModuleList on the way to a parameter, or of one that is itself such an
    element, are layers. Where any of these have submodules, as the blocks of a Transformer or ResNet, those alone are;
    a list of plain ones is part of what surrounds them. All that was registered before the first is one layer, the
    input's; so is all behind the last, and what stands between two. A parameter that a module around them has itself
    counts as before its first if a word in its name begins with `token`, `embed` or `pos`, else as behind its last.

    Without such lists every module that owns parameters is a layer, and those of modules around it are with its first
    or last in the same way.

    Args:
        module: that has the parameters.
        names: of the parameters, in the module's order.

    Example:
        >>> blocks = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> model = nn.ModuleDict({"embed": nn.Embedding(3, 2), "blocks": blocks})
        >>> list(layer_names(model, [name for name, _ in model.named_parameters()]).values())
        ['embed', 'blocks.0', 'blocks.0', 'blocks.1', 'blocks.1']

    As in BEiT's code, https://arxiv.org/abs/2106.08254, where models have lists of names for it.

    """
    places = {name: _place(module, name) for name in names}
    last = _last_inside(places)
    best = max((place.rank for place in places.values()), default=0)

    def is_around(name: str) -> bool:
        """Whether its module has submodules with parameters, and is no layer."""
        return places[name].rank < max(best, 1) and places[name].owner in last

    def is_layer(name: str) -> bool:
        return places[name].rank == best and not is_around(name)

    positions = {
        name: (last[places[name].owner], 1) if is_around(name) and not _is_first(name) else (index, 0)
        for index, name in enumerate(places)
    }
    layers: dict[str, str] = {}
    run: list[str] = []  # what stands together without being a layer of its own
    layer = ""
    for name in sorted(places, key=positions.__getitem__):
        if is_layer(name):
            layer = places[name].layer
            if best == 0:
                layers.update(dict.fromkeys(run, layer))
            run = []
            layers[name] = layer
        elif best == 0 and not _is_first(name):
            layers[name] = layer
        else:
            run.append(name)
            layers[name] = layers[run[0]] if len(run) > 1 else name if is_around(name) else places[name].layer
    return layers


@dataclass(frozen=True)
class _Place:
    """Where a parameter stands.

    Args:
        owner: name of the module that has it.
        layer: the element of a Sequential or ModuleList that it is in, or else the owner.
        rank: 2 for an element with submodules, 1 for a plain one, 0 for none.

    """

    owner: str
    layer: str
    rank: int


def _place(module: nn.Module, name: str) -> _Place:
    module, inside = unwrapped(module), False  # a Sequential or ModuleList
    owners = name.split(".")[:-1]
    element, rank = "", 0
    for depth, owner in enumerate([*owners, None]):
        is_list = isinstance(module, nn.Sequential | nn.ModuleList)
        if inside and not is_list and not rank:
            element, rank = ".".join(owners[:depth]), 2 if module._modules.keys() - {"parametrizations"} else 1
        if owner == "parametrizations" and is_parametrized(module):  # they are the module's own weight
            owners = owners[:depth]
            break
        inside = is_list
        if owner is not None:
            module = unwrapped(module.get_submodule(owner))
    own = ".".join(owners)
    return _Place(own, element if rank else own, rank)


def _last_inside(places: dict[str, _Place]) -> dict[str, int]:
    """For each module with submodules that have parameters: the position of the last one of these."""
    last: dict[str, int] = {}
    for index, place in enumerate(places.values()):
        owner = place.owner
        while owner:
            owner = owner.rpartition(".")[0]
            last[owner] = index
    return last


def _is_first(name: str) -> bool:
    return any(word.startswith(_FIRST) for word in name.rpartition(".")[2].casefold().split("_"))
