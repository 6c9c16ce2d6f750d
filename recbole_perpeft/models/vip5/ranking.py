"""How items are ranked: the templates that ask, and candidates as lists that tell nothing by their order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.settings import Settings, setting
from recbole_perpeft.models.vip5.item_order import random_ranks
from recbole_perpeft.models.vip5.network import Encoded, VIP5Network
from recbole_perpeft.models.vip5.scoring import beam_scores, candidate_scores, exact_scores
from recbole_perpeft.models.vip5.templates import Template
from recbole_perpeft.models.vip5.trie import ItemTrie

_MANY_NODES = 4096


@dataclass(frozen=True)
class RankingSettings(Settings):
    """How items are ranked."""

    prompts: str | None = setting(None, "A file of templates instead of those of the package.")
    eval_prompt: str = setting("A-3", "The template that ranks items.")
    candidates_prompt: str | None = setting(
        None, "Ranks sampled candidates: B-5 lists them, B-1 asks about each; ~ for eval_prompt."
    )
    decode: Literal["exact", "beam"] = setting("exact", "exact scores of all items | beam.")
    beam_size: int = setting(20, "Width of the beam.", least=1)
    score_batch_size: int = setting(256, "Prompts scored at once.", least=1)

    def warn_of_cost(self, trie: ItemTrie) -> None:
        """Warns if exact scoring of the catalogue reads very many positions a prompt."""
        if self.decode == "exact" and trie.n_nodes > _MANY_NODES:
            LOGGER.warning(
                f"decode: exact reads {trie.n_nodes} positions a prompt, because of how items are named; id_scheme: "
                "code needs the square root of the number of items, decode: beam a few"
            )

    def catalogue_scores(self, network: VIP5Network, encoded: Encoded) -> Tensor:
        """Log-probabilities of all items, [B, n_items]."""
        if self.decode == "exact":
            return exact_scores(network, encoded)
        return beam_scores(network, encoded, self.beam_size)

    def candidate_scores(self, network: VIP5Network, encoded: Encoded, candidates: Tensor) -> Tensor:
        """Log-probabilities of candidates [B, C] that compete with each other alone, [B, C]."""
        if self.decode == "exact":
            scores = candidate_scores(network, encoded, candidates)
        else:
            scores = beam_scores(network, encoded, self.beam_size, candidates).gather(1, candidates)
        return scores.log_softmax(dim=1)


@dataclass(frozen=True)
class RankingTemplates:
    """Templates that rank.

    Attributes:
        catalogue: Ranks the whole catalogue.
        candidates: Ranks sampled candidates.
    """

    catalogue: Template
    candidates: Template

    @property
    def lists_candidates(self) -> bool:
        """Whether all candidates of a user stand in one prompt."""
        return "candidates" in self.candidates.slots

    @classmethod
    def choose(
        cls, templates: Mapping[str, Template], settings: RankingSettings, trained: Sequence[str]
    ) -> "RankingTemplates":
        """Finds the templates that the settings name.

        Args:
            templates: Templates by name.
            settings: Their names.
            trained: Groups of tasks that are trained.

        Raises:
            PerPEFTError: A template does not exist or asks for something else.
        """
        suited = {name: one for name, one in templates.items() if (one.task, one.answers) == ("sequential", "item")}
        catalogue = suited.get(settings.eval_prompt)
        if catalogue is None:
            choice = f"choose of {', '.join(suited)}" if suited else "add one that does to the group sequential"
            raise PerPEFTError(f"eval_prompt: {settings.eval_prompt!r} does not ask for the next item; {choice}")
        name = settings.candidates_prompt or settings.eval_prompt
        suited = {name: one for name, one in templates.items() if one.answers != "words"}
        if name not in suited:
            raise PerPEFTError(
                f"candidates_prompt: {name!r} asks for no item, and not about one; choose of {', '.join(suited)}"
            )
        for key, one in (("eval_prompt", catalogue), ("candidates_prompt", suited[name])):
            if one.task not in trained:
                LOGGER.warning(
                    f"{key}: {one.name} belongs to the group {one.task}, which is not trained; give it a weight in "
                    "task_weights"
                )
        return cls(catalogue, suited[name])

    def check_sampling(self, config) -> int:
        """Checks that lists of candidates reach the model whole.

        Args:
            config: RecBole configuration with `eval_batch_size` and numbers of sampled candidates.

        Returns:
            Candidates of a user at most, the right one included; 0 if none are listed.

        Raises:
            PerPEFTError: Nothing is sampled, or the list of a user would be cut.
        """
        if not self.lists_candidates:
            return 0
        sampled = [config[f"{phase}_neg_sample_args"]["sample_num"] for phase in ("valid", "test")]
        n_candidates = 1 + max([n for n in sampled if n != "none"], default=0)
        if n_candidates == 1:
            raise PerPEFTError(
                f"candidates_prompt: {self.candidates.name} lists sampled candidates, of which there are none in a "
                "full ranking; set mode in eval_args to uni100, or leave candidates_prompt empty"
            )
        if config["eval_batch_size"] < n_candidates:
            raise PerPEFTError(
                f"eval_batch_size: {config['eval_batch_size']} cuts the {n_candidates} candidates of a user, which "
                f"{self.candidates.name} lists; set it to {n_candidates} or more"
            )
        return n_candidates


class CandidateLists(nn.Module):
    """Rows of users and items as one list of candidates a user.

    The order of a list depends on which items are in it alone, by a random permutation of all items. So it does not
    tell which row came first, as the right item of a user does in RecBole's sampled evaluation. The permutation is no
    part of a state dict.

    Args:
        item_tokens: Item tokens without the pad.
        seed: Of the permutation.
    """

    def __init__(self, item_tokens: Sequence[str], seed: int) -> None:
        super().__init__()
        # A stream of its own: random names have the permutation of the seed itself.
        place = torch.from_numpy(random_ranks(item_tokens, (seed, 1)))
        self.register_buffer("place", nn.functional.pad(place + 1, (1, 0)), persistent=False)
        self.register_buffer("item_at", self.place.argsort(), persistent=False)

    def forward(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Groups rows.

        Args:
            users: int64 [B].
            items: int64 [B], no pads; an item may come several times.

        Returns:
            Distinct users [U], their candidates [U, C] with 0 after the last, and for every row of the input the row
            [B] and the column [B] of its candidate.
        """
        n_items = len(self.place)
        keys, of_row = torch.unique(users * n_items + self.place[items], return_inverse=True)
        distinct, user_of_key, counts = torch.unique_consecutive(
            keys // n_items, return_inverse=True, return_counts=True
        )
        column = torch.arange(len(keys), device=keys.device) - (counts.cumsum(0) - counts)[user_of_key]
        candidates = torch.zeros(len(distinct), int(counts.max()), dtype=torch.long, device=keys.device)
        candidates[user_of_key, column] = self.item_at[keys % n_items]
        return distinct, candidates, user_of_key[of_row], column[of_row]
