"""What a training batch asks: a group of tasks, a template of it, and what fills its slots."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import Settings, setting
from recbole_perpeft.data.dataset import HistoryIndex
from recbole_perpeft.models.vip5.prompts import Sample
from recbole_perpeft.models.vip5.templates import TASKS, Template
from recbole_perpeft.nn.users.sasrec import left_pad

_MAX_REDRAWS = 100


@dataclass(frozen=True)
class TaskSettings(Settings):
    """How often what is asked."""

    task_weights: dict = setting(
        {"sequential": 1.0, "direct": 1.0}, "How often batches are sequential, direct, explanation."
    )
    n_candidates: int = setting(100, "Items of a list of candidates.", least=2)
    prompts_per_user: int = setting(1, "Prompts about a user of a batch.", least=1)

    def check(self) -> None:
        """Every weight is one of a group, and one is positive."""
        for task, weight in self.task_weights.items():
            if task not in TASKS:
                raise PerPEFTError(f"task_weights: {task!r} is no group of tasks; choose of {', '.join(TASKS)}")
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
                raise PerPEFTError(f"task_weights: the weight of {task} is {weight!r}; it must be a number, 0 or more")
        if not any(self.task_weights.values()):
            raise PerPEFTError("task_weights: no group has a positive weight; give one of them 1")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Groups that occur."""
        return tuple(task for task in TASKS if self.task_weights.get(task))


class TaskSampler(nn.Module):
    """Draws training samples. All rows of a batch share a template, so that none is padded to another's length.

    Numbers come from PyTorch's generators, whose state checkpoints keep. Tables are no part of a state dict.

    Args:
        templates: Those that are trained on.
        history: Train items of every user; no other items are known here.
        n_items: Number of item ids, the pad included.
        explained: Users and items of the explanations to train on, and their rows: three int64 [n].
        settings: How often what is asked.

    Raises:
        PerPEFTError: A group of tasks has no template or no rows, or a user owns the whole catalogue.
    """

    owned: Tensor
    explained_users: Tensor
    explained_items: Tensor
    explained_rows: Tensor
    _draw: Mapping[str, Callable[..., Sample]]

    def __init__(
        self,
        templates: Sequence[Template],
        history: HistoryIndex,
        n_items: int,
        explained: tuple[np.ndarray, np.ndarray, np.ndarray],
        settings: TaskSettings,
    ) -> None:
        super().__init__()
        self.settings = settings
        self._draw = {"sequential": self._sequential, "direct": self._direct, "explanation": self._explanation}
        self._n_items = n_items
        self._templates = {task: [one for one in templates if one.task == task] for task in settings.tasks}
        for task, some in self._templates.items():
            if not some:
                raise PerPEFTError(
                    f"prompts: no template of the group {task} is trained; add one or set its weight to 0"
                )
        self._weights = torch.tensor([float(settings.task_weights[task]) for task in settings.tasks])
        users, items = history.pairs()
        keys = np.unique(users * n_items + items)
        if np.bincount(keys // n_items).max(initial=0) >= n_items - 1:
            raise PerPEFTError("a user has all items of the catalogue; there is nothing to contrast them with")
        self.register_buffer("owned", torch.from_numpy(keys), persistent=False)
        for name, column in zip(("explained_users", "explained_items", "explained_rows"), explained, strict=True):
            self.register_buffer(name, torch.from_numpy(column), persistent=False)
        if "explanation" in settings.tasks and not len(self.explained_rows):
            raise PerPEFTError("the side file explains no interaction of the train part; set its task weight to 0")

    def draw_template(self) -> Template:
        """A group of tasks by the weights, and one of its templates."""
        task = self.settings.tasks[int(torch.multinomial(self._weights, 1))]
        some = self._templates[task]
        return some[int(torch.randint(len(some), (1,)))]

    def draw(self, template: Template, users: Tensor, item_seq: Tensor, targets: Tensor, length: Tensor) -> Sample:
        """Samples for a batch of train rows.

        Args:
            template: What is asked.
            users: int64 [B].
            item_seq: Inputs of the rows, int64 [B, L], right-padded.
            targets: The item after each input, [B, L]; 0 where it is asked in another row.
            length: Inputs of each row, [B].
        """
        n_prompts = self.settings.prompts_per_user
        rows = [part.repeat_interleave(n_prompts, dim=0) for part in (users, item_seq, targets, length)]
        return self._draw[template.task](template, *rows)

    def _sequential(
        self, template: Template, users: Tensor, item_seq: Tensor, targets: Tensor, length: Tensor
    ) -> Sample:
        n_targets = (targets != 0).sum(1)
        place = length - n_targets + _uniform(n_targets)
        items = targets.gather(1, place.unsqueeze(1)).squeeze(1)
        return self._question(template, users, items, left_pad(item_seq, place + 1))

    def _direct(self, template: Template, users: Tensor, item_seq: Tensor, targets: Tensor, length: Tensor) -> Sample:
        bought = torch.cat([item_seq[:, :1], targets], dim=1)
        n_targets = (targets != 0).sum(1)
        n_asked = n_targets + (n_targets == length)  # the first item too, where no other row asks for it
        items = bought.gather(1, (length + 1 - n_asked + _uniform(n_asked)).unsqueeze(1)).squeeze(1)
        if "candidates" not in template.slots:
            return self._question(template, users, items, None)
        others = self.negatives(users, self.settings.n_candidates - 1)
        candidates = torch.cat([items.unsqueeze(1), others], dim=1)
        shuffled = torch.rand(candidates.shape, device=users.device).argsort(dim=1)
        return Sample(users, items, candidates=candidates.gather(1, shuffled))

    def _explanation(self, template: Template, users: Tensor, *_rows: Tensor) -> Sample:
        drawn = torch.randint(len(self.explained_rows), (len(users),), device=users.device)
        return Sample(self.explained_users[drawn], self.explained_items[drawn], rows=self.explained_rows[drawn])

    def _question(self, template: Template, users: Tensor, items: Tensor, history: Tensor | None) -> Sample:
        if template.answers == "item":
            return Sample(users, items, history)
        is_positive = torch.rand(len(users), device=users.device) < 0.5
        return Sample(
            users, torch.where(is_positive, items, self.negatives(users, 1)[:, 0]), history, is_positive=is_positive
        )

    def negatives(self, users: Tensor, n: int) -> Tensor:
        """Items that users do not have in the train part, uniformly, [B, n]; the same may come twice."""
        drawn = torch.randint(1, self._n_items, (len(users), n), device=users.device)
        for _ in range(_MAX_REDRAWS):
            keys = users.unsqueeze(1) * self._n_items + drawn
            place = torch.searchsorted(self.owned, keys).clamp(max=len(self.owned) - 1)
            is_owned = self.owned[place] == keys
            if not is_owned.any():
                break
            drawn = torch.where(is_owned, torch.randint_like(drawn, 1, self._n_items), drawn)
        return drawn


def _uniform(n: Tensor) -> Tensor:
    """A whole number below each n."""
    return (torch.rand(n.shape, device=n.device) * n).long().clamp(max=n - 1)
