"""How items are scored and ranked: exactly, by beams, or as candidates in lists that tell nothing by their order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.settings import Settings, setting
from recbole_perpeft.models.vip5.names import random_ranks
from recbole_perpeft.models.vip5.network import Encoded, VIP5Network
from recbole_perpeft.models.vip5.templates import Template
from recbole_perpeft.models.vip5.trie import ItemTrie


def exact_scores(network: VIP5Network, encoded: Encoded) -> Tensor:
    """Log-probability of every item: what teacher forcing of all names gives, in one pass over the tree of names.

    With names of two tokens out of b, the decoder reads 1 + b positions, whatever the number of items.

    Args:
        network: The network.
        encoded: Prompts of B users.

    Returns:
        [B, n_items]; -inf for the pad. The probabilities of a row sum to one.
    """
    trie, backbone = network.trie, network.backbone
    n_rows, device = len(encoded.states), encoded.states.device
    edges = torch.zeros(n_rows, trie.n_edges + 1, device=device)  # the last one stands after the end of a name
    for chunk in trie.chunks:
        nodes, ancestors, scored = (part.to(device) for part in chunk)
        inputs = network.node_vectors(nodes).expand(n_rows, -1, -1)
        bias = backbone.tree_bias(ancestors.unsqueeze(0), trie.node_depth[nodes].unsqueeze(0))
        hidden = backbone.decode(inputs, *encoded, bias=bias)[:, scored]
        own = nodes[scored]
        log_probabilities = network.child_log_probabilities(hidden, own)  # (B, S, M)
        first, last = trie.first_edge[own[0]], trie.first_edge[own[-1] + 1]
        counts = trie.first_edge[own + 1] - trie.first_edge[own]
        row = torch.repeat_interleave(torch.arange(len(own), device=device), counts)
        edges[:, first:last] = log_probabilities[:, row, trie.edge_token[first:last]]
    parts = (edges.index_select(1, trie.item_edges[:, place]) for place in range(trie.max_length))
    scores = reduce(torch.add, parts)
    scores[:, 0] = -torch.inf
    return scores


def candidate_scores(network: VIP5Network, encoded: Encoded, candidates: Tensor) -> Tensor:
    """Log-probabilities of some items: the same as `exact_scores`, without the rest of the tree.

    The decoder reads one chain a candidate from a common root in one pass, so that its cost does not depend on the
    catalogue.

    Args:
        network: The network.
        encoded: Prompts of B users.
        candidates: int64 [B, C]; 0 for none.

    Returns:
        [B, C]; -inf where there is no candidate.
    """
    trie, device = network.trie, candidates.device
    n_rows, n_candidates = candidates.shape
    nodes, tokens, exists = (part.view(n_rows, n_candidates, -1) for part in trie.paths(candidates.flatten()))
    n_inner = nodes.shape[2] - 1  # nodes of a chain
    depth = functional.pad(torch.arange(1, n_inner + 1, device=device).repeat(n_candidates), (1, 0))
    chain = functional.pad(torch.arange(1, n_candidates + 1, device=device).repeat_interleave(n_inner), (1, 0))
    ancestors = (chain.unsqueeze(1) == chain) & (depth.unsqueeze(1) >= depth)
    ancestors[:, 0] = True
    places = functional.pad(nodes[:, :, 1:].flatten(1), (1, 0))  # (B, 1 + C n_inner), the root first
    bias = network.backbone.tree_bias(ancestors.unsqueeze(0), depth.unsqueeze(0))
    hidden = network.backbone.decode(network.node_vectors(places), *encoded, bias=bias)
    log_probabilities = network.child_log_probabilities(hidden, places)  # (B, 1 + C n_inner, M)
    first = log_probabilities[:, 0].gather(1, tokens[:, :, 0])
    others = log_probabilities[:, 1:].gather(2, tokens[:, :, 1:].reshape(n_rows, -1, 1)).view(n_rows, n_candidates, -1)
    summed = torch.cat([first.unsqueeze(2), others], dim=2).masked_fill(~exists, 0.0).sum(dim=2)
    return summed.masked_fill(candidates == 0, -torch.inf)


def answer_scores(network: VIP5Network, encoded: Encoded, yes: int, no: int) -> Tensor:
    """By how much the logit of the word `yes` exceeds that of `no` as the first word of an answer, [B]."""
    root = torch.zeros(len(encoded.states), 1, dtype=torch.long, device=encoded.states.device)
    hidden = network.backbone.decode(network.node_vectors(root), *encoded)
    log_probabilities = network.word_log_probabilities(hidden)[:, 0]
    return log_probabilities[:, yes] - log_probabilities[:, no]


def beam_scores(network: VIP5Network, encoded: Encoded, width: int, among: Tensor | None = None) -> Tensor:
    """Log-probabilities of the items that a beam search over the tree of names reaches; no name is invalid.

    Args:
        network: The network.
        encoded: Prompts of B users.
        width: Beginnings of names that are kept at every length; whole names count.
        among: Items whose names alone are searched, int64 [B, C], 0 for none; None for all.

    Returns:
        [B, n_items]; -inf for what is not reached, and for the pad.
    """
    trie, backbone = network.trie, network.backbone
    n_rows, device = len(encoded.states), encoded.states.device
    n_tokens = trie.n_tokens
    edge_node = torch.repeat_interleave(torch.arange(trie.n_nodes, device=device), trie.first_edge.diff())
    edge_keys = edge_node * n_tokens + trie.edge_token
    is_open = None if among is None else _edges_of(trie, among)
    scores = torch.full((n_rows, len(trie.item_edges)), -torch.inf, device=device)
    nodes = torch.zeros(n_rows, 1, dtype=torch.long, device=device)
    ancestors = torch.ones(n_rows, 1, 1, dtype=torch.bool, device=device)
    frontier = torch.zeros(n_rows, 1, device=device)  # log-probability of the last nodes
    for _ in range(trie.max_length):
        n_last = frontier.shape[1]
        bias = backbone.tree_bias(ancestors, trie.node_depth[nodes])
        hidden = backbone.decode(network.node_vectors(nodes), *encoded, bias=bias)[:, -n_last:]
        last = nodes[:, -n_last:]
        reached = frontier.unsqueeze(2) + network.child_log_probabilities(hidden, last)
        if is_open is not None:
            edges = torch.searchsorted(edge_keys, last.unsqueeze(2) * n_tokens + torch.arange(n_tokens, device=device))
            reached = reached.masked_fill(~is_open.gather(1, edges.flatten(1)).view_as(reached), -torch.inf)
        best, place = reached.flatten(1).topk(min(width, n_last * n_tokens))
        beam, token = place // n_tokens, place % n_tokens
        edge = torch.searchsorted(edge_keys, last.gather(1, beam) * n_tokens + token).clamp(max=trie.n_edges - 1)
        # What is no name's end goes to the column of the pad, which holds nothing.
        is_end = (best > -torch.inf) & (trie.edge_item[edge] > 0)
        scores.scatter_(1, trie.edge_item[edge] * is_end, best.masked_fill(~is_end, -torch.inf))
        goes_on = (best > -torch.inf) & (trie.edge_child[edge] >= 0)
        if not goes_on.any():
            break
        frontier = best.masked_fill(~goes_on, -torch.inf)
        parent = ancestors.shape[1] - n_last + beam
        ancestors = _with_children(ancestors, parent)
        nodes = torch.cat([nodes, trie.edge_child[edge] * goes_on], dim=1)
    scores[:, 0] = -torch.inf
    return scores


def _edges_of(trie: ItemTrie, items: Tensor) -> Tensor:
    """Which edges belong to names of items [B, C], bool [B, E + 1]; the last one stands after the end of a name."""
    edges = trie.item_edges[items].flatten(1)
    return torch.zeros(len(items), trie.n_edges + 1, dtype=torch.bool, device=items.device).scatter_(1, edges, True)


def _with_children(ancestors: Tensor, parent: Tensor) -> Tensor:
    """Ancestors [B, P, P] with K more nodes, whose parents are at the places `parent` [B, K]: [B, P + K, P + K]."""
    n_old, n_new = ancestors.shape[1], parent.shape[1]
    inherited = ancestors.gather(1, parent.unsqueeze(2).expand(-1, -1, n_old))
    itself = torch.eye(n_new, dtype=torch.bool, device=parent.device).expand(len(parent), -1, -1)
    return torch.cat([functional.pad(ancestors, (0, n_new)), torch.cat([inherited, itself], dim=2)], dim=1)


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
        split = config["eval_args"]["split"]
        given = config["benchmark_filename"]
        if given is not None or "LS" not in split:
            raise PerPEFTError(
                f"candidates_prompt: {self.candidates.name} lists the candidates of a user in one prompt, and with "
                f"{f'the parts {given}' if given else f'the split {split}'} he may have several lists: split by "
                "{LS: ...}, or leave candidates_prompt empty"
            )
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

    place: Tensor
    item_at: Tensor

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
