"""The tree of item names: nodes are their proper beginnings, edges their tokens."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class TrieChunk(NamedTuple):
    """Nodes that are scored together, with their ancestors.

    Attributes:
        nodes: int64 [P], ascending: every node after its parent.
        ancestors: bool [P, P]; whether the second node is an ancestor of the first, or itself.
        scored: Places in `nodes` of those whose edges are scored here, int64 [S].
    """

    nodes: Tensor
    ancestors: Tensor
    scored: Tensor


class ItemTrie(nn.Module):
    """Names of items as a tree in compressed rows. Nodes and edges are numbered level by level; node 0 is the root.

    No name may begin another one. Buffers follow from the names and are no part of a state dict.

    Args:
        names: int64 [n, L], the names of the items 1 .. n; -1 after the end.
        n_tokens: M.
        chunk_size: Most nodes, ancestors not counted, that are scored at once.

    Attributes:
        n_nodes: Number of nodes, N.
        n_edges: Number of edges, E.
        node_token: Token of the edge to a node, int64 [N]; -1 for the root.
        node_parent: int64 [N]; -1 for the root.
        node_depth: int64 [N].
        first_edge: int64 [N + 1]; the edges from node v are `first_edge[v] .. first_edge[v + 1] - 1`.
        edge_token: int64 [E].
        edge_child: Node an edge leads to, int64 [E]; -1 where a name ends.
        edge_item: Item whose name ends, int64 [E]; 0 for other edges.
        item_edges: Edges of every item's name, int64 [n + 1, L]; E after its end, and for the pad.
    """

    node_token: Tensor
    node_parent: Tensor
    node_depth: Tensor
    first_edge: Tensor
    edge_token: Tensor
    edge_child: Tensor
    edge_item: Tensor
    item_edges: Tensor

    def __init__(self, names: np.ndarray, n_tokens: int, chunk_size: int = 1024) -> None:
        super().__init__()
        self.n_tokens = n_tokens
        tables = _tables(names, n_tokens)
        self.n_nodes, self.n_edges = len(tables["node_token"]), len(tables["edge_token"])
        for name, table in tables.items():
            self.register_buffer(name, torch.from_numpy(table), persistent=False)
        self.max_length = names.shape[1]
        self.chunks = self._cut(chunk_size)

    def allowed(self, nodes: Tensor) -> Tensor:
        """Which tokens may follow.

        Args:
            nodes: int64 [...].

        Returns:
            bool [..., M]
        """
        flat = nodes.reshape(-1)
        starts, counts = self.first_edge[flat], self.first_edge[flat + 1] - self.first_edge[flat]
        rows = torch.repeat_interleave(torch.arange(len(flat), device=flat.device), counts)
        offsets = torch.arange(len(rows), device=flat.device) - (counts.cumsum(0) - counts)[rows]
        mask = torch.zeros(len(flat), self.n_tokens, dtype=torch.bool, device=flat.device)
        mask[rows, self.edge_token[starts[rows] + offsets]] = True
        return mask.view(*nodes.shape, self.n_tokens)

    def paths(self, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Names as a decoder learns them.

        Args:
            items: int64 [B], no pads.

        Returns:
            Nodes before each token [B, L], tokens [B, L], and whether there is a token [B, L].
        """
        edges = self.item_edges[items]
        exists = edges < self.n_edges
        edges = edges.clamp(max=self.n_edges - 1)
        nodes = torch.searchsorted(self.first_edge, edges, right=True) - 1
        return nodes, self.edge_token[edges], exists

    def _cut(self, chunk_size: int) -> list[TrieChunk]:
        parent = self.node_parent.numpy()
        chunks = []
        for start in range(0, self.n_nodes, chunk_size):
            own = np.arange(start, min(start + chunk_size, self.n_nodes))
            levels = [own]
            while (levels[-1] > 0).any():
                levels.append(np.maximum(parent[levels[-1]], 0))
            nodes, place = np.unique(np.concatenate(levels), return_inverse=True)
            ancestors = np.eye(len(nodes), dtype=bool)
            current = nodes
            while (current > 0).any():
                current = np.maximum(parent[current], 0)
                ancestors[np.arange(len(nodes)), np.searchsorted(nodes, current)] = True
            chunks.append(TrieChunk(*map(torch.from_numpy, (nodes, ancestors, place[: len(own)]))))
        return chunks


def _tables(names: np.ndarray, n_tokens: int) -> dict[str, np.ndarray]:
    n_items, length = names.shape
    node = np.zeros(n_items, dtype=np.int64)  # where each item's name has come to
    node_token, node_parent, node_depth = [np.array([-1])], [np.array([-1])], [np.array([0])]
    edge_node, edge_token, edge_child, edge_item = [], [], [], []
    paths = np.full((n_items + 1, length), -1, dtype=np.int64)
    n_nodes, n_edges = 1, 0
    for level in range(length):
        rows = np.flatnonzero(names[:, level] >= 0)
        keys, inverse = np.unique(node[rows] * n_tokens + names[rows, level], return_inverse=True)
        goes_on = np.zeros(len(rows), dtype=bool) if level + 1 == length else names[rows, level + 1] >= 0
        child = np.full(len(keys), -1, dtype=np.int64)
        continuing = np.unique(inverse[goes_on])
        child[continuing] = n_nodes + np.arange(len(continuing))
        item = np.zeros(len(keys), dtype=np.int64)
        item[inverse[~goes_on]] = rows[~goes_on] + 1
        paths[rows + 1, level] = n_edges + inverse
        node[rows] = child[inverse]
        edge_node.append(keys // n_tokens)
        edge_token.append(keys % n_tokens)
        edge_child.append(child)
        edge_item.append(item)
        node_token.append(keys[continuing] % n_tokens)
        node_parent.append(keys[continuing] // n_tokens)
        node_depth.append(np.full(len(continuing), level + 1))
        n_nodes, n_edges = n_nodes + len(continuing), n_edges + len(keys)
    counts = np.bincount(np.concatenate(edge_node), minlength=n_nodes)
    tables = {
        "node_token": np.concatenate(node_token),
        "node_parent": np.concatenate(node_parent),
        "node_depth": np.concatenate(node_depth),
        "first_edge": np.concatenate([[0], np.cumsum(counts)]),
        "edge_token": np.concatenate(edge_token),
        "edge_child": np.concatenate(edge_child),
        "edge_item": np.concatenate(edge_item),
        "item_edges": np.where(paths < 0, n_edges, paths),
    }
    return {name: table.astype(np.int64) for name, table in tables.items()}
