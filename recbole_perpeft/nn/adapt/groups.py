"""What each group of users owns."""

import copy
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar, cast

from torch import Tensor, nn

GLOBAL = "global"
ALL_GROUPS = -2  # where the number of a group stands: all of them side by side; -1 is that of nobody
Owned = TypeVar("Owned", bound=nn.Module)


class GroupModules(nn.ModuleDict, Generic[Owned]):
    """A module for everybody, named `global`, and after `personalise` a copy of it a group, named by its number.

    Wherever a model keeps such modules, `personalise` finds them; everything else in a model is shared by all groups.

    Args:
        module: The global one.
    """

    def __init__(self, module: Owned) -> None:
        super().__init__({GLOBAL: module})

    def of(self, group: int | None) -> Owned:
        """The module of a group; None is the global one."""
        return cast(Owned, self[GLOBAL if group is None else str(group)])

    def personalise(self, n_groups: int) -> None:
        """Gives each group a copy of the global module, which stays for users who have no group yet."""
        shared = self.of(None)
        self.clear()
        self[GLOBAL] = shared
        self.update({str(group): copy.deepcopy(shared) for group in range(n_groups)})


def _modules_of(model: nn.Module, group: int) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of everything that a group owns."""
    for name, module in model.named_modules():
        if isinstance(module, GroupModules):
            yield name, module.of(group)


def parameters_of(model: nn.Module, group: int) -> Iterator[nn.Parameter]:
    """Parameters that a group owns in a model."""
    for _, module in _modules_of(model, group):
        yield from module.parameters()


def group_state(model: nn.Module, group: int) -> dict[str, Tensor]:
    """A copy of all tensors that a group owns in a model, on the CPU."""
    return {
        f"{name}.{key}": tensor.detach().to("cpu", copy=True)
        for name, module in _modules_of(model, group)
        for key, tensor in module.state_dict().items()
    }


def load_group_state(model: nn.Module, group: int, state: Mapping[str, Tensor]) -> None:
    """Undoes `group_state`."""
    for name, module in _modules_of(model, group):
        module.load_state_dict({key: state[f"{name}.{key}"] for key in module.state_dict()})


def owned_by_groups(model: nn.Module) -> set[int]:
    """Identities of the parameters that single groups own; those of the global modules are not among them."""
    return {
        id(parameter)
        for module in model.modules()
        if isinstance(module, GroupModules)
        for name, part in module.items()
        if name != GLOBAL
        for parameter in part.parameters()
    }


def freeze_shared(model: nn.Module) -> None:
    """Lets nothing train but what groups own; their own frozen parts stay so."""
    owned = owned_by_groups(model)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.requires_grad and id(parameter) in owned)


def personalise(model: nn.Module, n_groups: int) -> None:
    """Gives each group copies of all that groups own in a model, as in `GroupModules.personalise`."""
    for module in list(model.modules()):
        if isinstance(module, GroupModules):
            module.personalise(n_groups)
