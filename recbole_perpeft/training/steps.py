"""An epoch of training steps, of one batch each or of several that several processes share."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from functools import reduce
from itertools import islice
from typing import Any

import torch
from recbole.trainer import Trainer
from recbole.utils import set_color
from torch import Tensor
from tqdm import tqdm

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.sampler import batch_seed
from recbole_perpeft.training.gradients import MeanGradient
from recbole_perpeft.training.optimisers import clip_norm
from recbole_perpeft.training.workers import Workers, share_of_steps

_STEPS_BETWEEN_CHECKS = 64


class StepTrainer(Trainer):
    """RecBole's trainer with steps of `batches_a_step` batches.

    Attributes:
        workers: the processes that share the training.
        batches_a_step: whose mean gradient makes a step.
        draws_by_number: whether what is drawn for a batch follows from its number, as it always does with several
            batches a step.
        resting: groups whose batches are left out; the steps are counted as if they were there.
    """

    workers: Workers
    batches_a_step: int
    draws_by_number = False
    resting: Container[int] = ()

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        """Train one epoch.

        Returns:
            The sum of the batches' losses, as in RecBole; a tuple of sums if the model returns several losses.

        Raises:
            PerPEFTError: the loss is not finite.
        """
        self.model.train()
        loss_func = loss_func or self.model.calculate_loss
        n_steps, description = self._n_steps_an_epoch(train_data), set_color(f"Train {epoch_idx:>5}", "pink")
        steps = self._steps(train_data, epoch_idx, loss_func)
        total = self._no_loss()
        for step, losses in enumerate(tqdm(steps, description, n_steps, ncols=100, disable=not show_progress)):
            total = total + losses
            # Reading the loss waits for the device: not at every step.
            if step % _STEPS_BETWEEN_CHECKS == 0:
                self._finite(total, epoch_idx, step)
        total = self._finite(total, epoch_idx, n_steps)
        return tuple(total.tolist()) if len(total) > 1 else total.item()

    def _n_steps_an_epoch(self, train_data) -> int:
        return -(-len(train_data) // self.batches_a_step)

    def _steps(self, train_data, epoch: int, loss_func) -> Iterator[Tensor]:
        """Takes the steps of an epoch; yields the losses of each, summed over this process's batches."""
        if self.batches_a_step == 1 and not self.draws_by_number:
            for batch in train_data:
                yield self._train_step([self._on_device(batch)], loss_func)
            return
        n_batches = len(train_data)
        share = share_of_steps(n_batches, self.batches_a_step, self.workers)
        batches = self._numbered_batches(train_data, epoch, [number for own in share for number in own])
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        gradient = MeanGradient(self.model, trained, self.workers) if self.batches_a_step > 1 else None
        for step, own in enumerate(share):
            n_together = min(self.batches_a_step, n_batches - step * self.batches_a_step)
            of_step = (batch for batch in islice(batches, len(own)) if batch is not None)
            yield self._train_step(of_step, loss_func, gradient, n_together)
        torch.manual_seed(batch_seed(self.config["seed"], epoch, n_batches))  # the same in all processes

    def _numbered_batches(self, train_data, epoch: int, numbers: list[int]) -> Iterator[Any]:
        """Batches of an epoch, and before each of them the generator as its number has it.

        What is drawn for a batch and within its loss is then the same, whichever process draws it. None stands for a
        batch of a group that rests.
        """
        for number, batch in zip(numbers, train_data.numbered(numbers, epoch, self.resting), strict=True):
            torch.manual_seed(batch_seed(self.config["seed"], epoch, number))
            yield None if batch is None else self._on_device(batch)

    def _on_device(self, interaction):
        """The batch where the model wants it."""
        return interaction.to(self.device)

    def _train_step(
        self, batches: Iterable[Any], loss_func, gradient: MeanGradient | None = None, n_batches: int = 1
    ) -> Tensor:
        """One update.

        Args:
            batches: of this process.
            loss_func: of a batch.
            gradient: adds up what several batches give; None takes the gradient of a single batch as it is.
            n_batches: of the step, those of all processes.

        Returns:
            The detached losses, summed over this process's batches, [number of losses].
        """
        total = self._no_loss()
        self.optimizer.zero_grad()
        for batch in batches:
            total = total + self._backward(batch, loss_func)
            if gradient is not None:
                gradient.take()
        if gradient is not None:
            gradient.give(n_batches)
        # The optimiser's lists are at hand; walking through the modules of an encoder takes longer than a small loss.
        if any(parameter.grad is not None for part in self.optimizer.param_groups for parameter in part["params"]):
            self._update()
        return total

    def _backward(self, interaction, loss_func) -> Tensor:
        """Gradients of a batch; the detached losses, [number of losses]."""
        precision = torch.float16 if self.enable_scaler else torch.bfloat16
        with torch.autocast(self.device.type, precision, enabled=self.enable_amp):
            losses = loss_func(interaction)
        losses = losses if isinstance(losses, tuple) else (losses,)
        self.scaler.scale(reduce(torch.add, losses)).backward()
        return torch.stack([loss.detach().double().reshape(()) for loss in losses])

    def _update(self) -> None:
        """Change the weights by their gradients."""
        if self.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            clip_norm(self.model.parameters(), **self.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _no_loss(self) -> Tensor:
        return torch.zeros(1, dtype=torch.float64, device=self.device)

    def _finite(self, total: Tensor, epoch: int, step: int) -> Tensor:
        """Losses [number of losses], of all processes together: all see at once that they are not finite."""
        whole: Tensor = reduce(torch.add, self.workers.gather(total.cpu()))
        if not torch.isfinite(whole).all():
            raise PerPEFTError(
                f"the training loss is {whole.tolist()} in epoch {epoch} by batch {step}: lower learning_rate or set "
                "clip_grad_norm"
            )
        return whole
