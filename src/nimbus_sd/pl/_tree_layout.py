"""Lay out a tree of nodes in the plane."""

from __future__ import annotations

import numpy as np
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree, shortest_path
from scipy.spatial.distance import pdist, squareform

_STEPS = 200


def spanning_tree(points: np.ndarray) -> np.ndarray:
    """Edges of the minimum spanning tree of `points` ``(n, k)`` by Euclidean distance, int ``(n - 1, 2)``.

    Examples
    --------
    >>> spanning_tree(np.array([[0.0], [1.0], [3.0]])).tolist()
    [[0, 1], [1, 2]]
    """
    if len(points) < 2:
        return np.empty((0, 2), dtype=np.int64)
    # one more in every distance changes no order, and equal points are not taken for unconnected ones
    distance = squareform(pdist(points)) + 1
    np.fill_diagonal(distance, 0)
    tree = minimum_spanning_tree(distance).tocoo()
    edges = np.sort(np.stack([tree.row, tree.col], axis=1).astype(np.int64), axis=1)
    return edges[np.lexsort(edges.T[::-1])]


def equal_angle(n: int, edges: np.ndarray) -> np.ndarray:
    """Positions of a tree's nodes, without crossing edges: each subtree has a wedge of its own.

    The root is the middle of the longest path. A wedge is as wide as its subtree has
    leaves ("equal angle"), edges have length 1.

    Parameters
    ----------
    n
        Nodes.
    edges
        int ``(n - 1, 2)``.

    Returns
    -------
    float64 ``(n, 2)``.

    References
    ----------
    Meacham's equal-angle algorithm, in Felsenstein (2004), *Inferring phylogenies*, ch. 34.

    Examples
    --------
    >>> equal_angle(3, np.array([[0, 1], [1, 2]])).round(6).tolist()
    [[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]]
    """
    neighbours: list[list[int]] = [[] for _ in range(n)]
    for a, b in edges.tolist():
        neighbours[a].append(b)
        neighbours[b].append(a)
    root = _middle(n, edges)
    order, parent = _walk(root, neighbours)
    leaves = np.array([float(len(m) <= 1) for m in neighbours])
    leaves[root] = float(n == 1)
    for node in reversed(order[1:]):
        leaves[parent[node]] += leaves[node]
    out = np.zeros((n, 2))
    start = {root: -np.pi / max(1, len(neighbours[root]))}
    for node in order:
        angle = start[node]
        for child in sorted(c for c in neighbours[node] if c != parent[node]):
            width = 2 * np.pi * leaves[child] / leaves[root]
            middle = angle + width / 2
            out[child] = out[node] + (np.cos(middle), np.sin(middle))
            start[child] = angle
            angle += width
    return out


def tree_layout(n: int, edges: np.ndarray) -> np.ndarray:
    """Positions of a tree's nodes whose distances are as near as can be to the numbers of edges between them.

    Starts from :func:`equal_angle` and lowers the stress, weighted by distance to the -2,
    by majorisation: 200 steps, or until it falls by less than a ten-thousandth.

    Parameters
    ----------
    n
        Nodes.
    edges
        int ``(n - 1, 2)``.

    Returns
    -------
    float64 ``(n, 2)``, the longer extent along x, centred.

    References
    ----------
    Gansner et al. (2004), *Graph drawing by stress majorization*.

    Examples
    --------
    >>> tree_layout(3, np.array([[0, 1], [1, 2]])).round(3).tolist()
    [[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]]
    """
    place = equal_angle(n, edges)
    if n < 3:
        return place - place.mean(0)
    graph = np.zeros((n, n))
    graph[edges[:, 0], edges[:, 1]] = 1
    steps = shortest_path(graph, directed=False, unweighted=True)
    np.fill_diagonal(steps, 1)
    weight = steps**-2
    np.fill_diagonal(weight, 0)
    inverse = np.linalg.pinv(np.diag(weight.sum(1)) - weight)
    before = np.inf
    for _ in range(_STEPS):
        gap = squareform(pdist(place))
        stress = float((weight * (gap - steps) ** 2).sum())
        if stress > before * (1 - 1e-4):
            break
        before = stress
        pull = -weight * steps / np.where(gap > 1e-9, gap, np.inf)
        np.fill_diagonal(pull, -pull.sum(1))
        place = inverse @ (pull @ place)
    return _upright(place - place.mean(0))


def _upright(place: np.ndarray) -> np.ndarray:
    """Turned so that the longer extent lies along x; node 0 is at the right."""
    axes = np.linalg.svd(place, full_matrices=False)[2]
    turned = place @ axes.T
    return turned * np.where(turned[0] < -1e-9, -1.0, 1.0)


def _walk(root: int, neighbours: list[list[int]]) -> tuple[list[int], dict[int, int]]:
    order, parent = [root], {root: -1}
    for node in order:
        for other in neighbours[node]:
            if other not in parent:
                parent[other] = node
                order.append(other)
    return order, parent


def _middle(n: int, edges: np.ndarray) -> int:
    """The node in the middle of the longest path."""
    graph = np.zeros((n, n))
    graph[edges[:, 0], edges[:, 1]] = 1
    far = int(breadth_first_order(graph, 0, directed=False, return_predecessors=False)[-1])
    order, before = breadth_first_order(graph, far, directed=False)
    path = [int(order[-1])]
    while path[-1] != far:
        path.append(int(before[path[-1]]))
    return path[len(path) // 2]
