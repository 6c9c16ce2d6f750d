"""What each group of users owns."""

import copy
from typing import Generic, TypeVar, cast

from torch import nn

GLOBAL = "global"
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


def personalise(model: nn.Module, n_groups: int) -> None:
    """Gives each group copies of all that groups own in a model, as in `GroupModules.personalise`."""
    for module in list(model.modules()):
        if isinstance(module, GroupModules):
            module.personalise(n_groups)
