"""Singular values of task vectors: thin decompositions that stay cheap for embeddings, and orthogonalisation."""

from __future__ import annotations

import torch
from torch import Tensor

TALL = 4
"""From this ratio of sides on, the Gram matrix of the short side is decomposed, in float64."""


def thin_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, r), S (r,), Vᵀ (r, n) with r = min(m, n), float32, singular values falling."""
    rows, columns = matrix.shape
    if rows > TALL * columns:
        return _by_gram(matrix)
    if columns > TALL * rows:
        u, s, vt = _by_gram(matrix.T)
        return vt.T, s, u.T
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u, s, vt


def _by_gram(tall: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    columns = tall.shape[1]
    gram = torch.zeros(columns, columns, dtype=torch.float64)
    for rows in tall.split(8192):
        gram.addmm_(rows.double().T, rows.double())
    values, vectors = torch.linalg.eigh(gram)
    s, v = values.clamp_min(0.0).sqrt().flip(0), vectors.flip(1)
    inverse = torch.where(s > s[0] * 1e-7, 1 / s.clamp_min(1e-300), 0.0)
    u = torch.cat([(rows.double() @ v * inverse).float() for rows in tall.split(8192)])
    return u, s.float(), v.T.float()


def orthogonalise(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns (or rows): P Qᵀ of its SVD (Procrustes)."""
    u, s, vt = thin_svd(matrix)
    kept = s > s[0] * 1e-6 if len(s) else s > 0  # directions that are not there have no nearest
    return (u * kept) @ vt


def is_matrix(tensor: Tensor) -> bool:
    """Whether singular vectors say anything about it."""
    return tensor.ndim == 2 and min(tensor.shape) > 1
