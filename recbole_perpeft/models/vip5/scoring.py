"""Scores of items under the model: of the whole catalogue, of candidates, or of what a beam search reaches."""

import torch
from torch import Tensor
from torch.nn import functional

from recbole_perpeft.models.vip5.network import Encoded, VIP5Network
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
    scores = sum(edges.index_select(1, trie.item_edges[:, place]) for place in range(trie.max_length))
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
