"""A message passing network for molecules: edge network, gated recurrent update, set2set readout.

Gilmer et al. 2017 (arXiv 1704.01212, "enn-s2s", section 5) in the form that multi-task papers use on QM9 (Navon et al.
2022, Nash-MTL, arXiv 2202.01017): messages of all pairs of atoms of a molecule, averaged, three times with the same
weights; set2set (Vinyals et al. 2016, arXiv 1511.06391) in three steps; a linear layer.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.backbones.base import Backbone
from runner.config.kinds import NonNegativeInt, PositiveInt
from runner.errors import UserError
from runner.specs import FeatureSpec, InputSpec
from runner.types import Features

PRESETS = {"tiny": (16, 8), "base": (64, 128)}
"""size → (width of an atom's state, width of the edge network's hidden layer)."""

BONDS = 4
"""Single, double, triple, aromatic."""

MOST_PROTONS = 118


class MPNN(Backbone):
    """Atoms, positions and bonds → pooled (B, D).

    m_i = mean_j W(e_ij) h_j + V h_i + c over all other atoms j of the molecule, h_i ← GRU(relu(m_i), h_i), with e_ij
    the kind of bond (one of four, or none) and the distance, and W an MLP with one hidden layer. An atom's first state
    is an embedding of its element; the published networks add what RDKit says of it (hybridisation, aromaticity,
    acceptor, donor). Layer groups: embedding, messages, readout.

    Args:
        steps: of message passing. readout_steps: of set2set.
    """

    input_kind = "graph"
    serves = ("pooled",)

    def __init__(
        self,
        inputs: InputSpec,
        *,
        size: Literal["tiny", "base"] = "base",
        frozen: bool | NonNegativeInt = False,
        steps: PositiveInt = 3,
        readout_steps: PositiveInt = 3,
    ) -> None:
        super().__init__()
        if inputs.kind != "graph":
            raise UserError(
                f"this backbone reads molecules, the mixture feeds it {inputs.kind}", see="runner ls backbone"
            )
        width, hidden = PRESETS[size]
        self.steps, self.readout_steps = steps, readout_steps
        self.spec = FeatureSpec(dim=width)
        self.embedding = nn.Sequential(nn.Embedding(MOST_PROTONS + 1, width), nn.Linear(width, width), nn.ReLU())
        self.edges = nn.Sequential(nn.Linear(BONDS + 1, hidden), nn.ReLU())
        # What W(e) is made of: its hidden layer's outputs and a constant weigh (hidden + 1) matrices of D x D.
        self.matrices = nn.Linear((hidden + 1) * width, width, bias=False)
        self.own = nn.Linear(width, width)
        self.update = nn.GRUCell(width, width)
        self.readout = nn.LSTMCell(2 * width, width)
        self.out = nn.Linear(2 * width, width)
        bound = hidden**-0.5  # of the edge network's last layer, as torch initialises it
        nn.init.uniform_(self.matrices.weight, -bound, bound)
        self.finish(frozen, gradient_checkpointing=False)

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        """Features of `inputs["atoms"]`, `inputs["positions"]` and `inputs["bonds"]`."""
        atoms_BN = inputs["atoms"]
        real_BN = atoms_BN > 0
        state_BND = self.embedding(atoms_BN)
        weights_BPN = self._edge_weights(inputs["positions"], inputs["bonds"], real_BN)
        for _ in range(self.steps):
            message_BND = self._messages(state_BND, weights_BPN)
            state_BND = self.update(F.relu(message_BND).flatten(0, 1), state_BND.flatten(0, 1)).view_as(state_BND)
        return Features(pooled=F.relu(self.out(self._set2set(state_BND, real_BN))))

    def _edge_weights(self, positions_BN3: Tensor, bonds_BNN: Tensor, real_BN: Tensor) -> Tensor:
        """(B, N · (hidden + 1), N): by how much each matrix counts in the message to i from j; the mean is over j."""
        difference = positions_BN3.unsqueeze(2) - positions_BN3.unsqueeze(1)
        distance_BNN1 = difference.square().sum(-1, keepdim=True).sqrt()
        bonds_BNN4 = F.one_hot(bonds_BNN, BONDS + 1)[..., 1:].to(distance_BNN1.dtype)
        hidden_BNNK = self.edges(torch.cat([bonds_BNN4, distance_BNN1], dim=-1))
        apart = ~torch.eye(real_BN.shape[1], dtype=torch.bool, device=real_BN.device)
        pair_BNN = real_BN.unsqueeze(2) & real_BN.unsqueeze(1) & apart
        share_BNN = pair_BNN / pair_BNN.sum(-1, keepdim=True).clamp_min(1)
        weights_BNNK = torch.cat([hidden_BNNK, torch.ones_like(hidden_BNNK[..., :1])], dim=-1)
        weights_BNNK = weights_BNNK * share_BNN.unsqueeze(-1).to(weights_BNNK.dtype)
        return weights_BNNK.transpose(2, 3).flatten(1, 2)

    def _messages(self, state_BND: Tensor, weights_BPN: Tensor) -> Tensor:
        """Σ_j W(e_ij) h_j as Σ_k M_k (Σ_j w_ijk h_j): no D × D matrix per pair is ever made."""
        batch, atoms, _ = state_BND.shape
        gathered_BPD = weights_BPN.to(state_BND.dtype) @ state_BND
        return self.matrices(gathered_BPD.reshape(batch, atoms, -1)) + self.own(state_BND)

    def _set2set(self, state_BND: Tensor, real_BN: Tensor) -> Tensor:
        """(B, 2 D): what the last query found, beside the query."""
        batch, _, width = state_BND.shape
        found_BQ = state_BND.new_zeros(batch, 2 * width)
        query_BD, memory_BD = state_BND.new_zeros(2, batch, width)
        for _ in range(self.readout_steps):
            query_BD, memory_BD = self.readout(found_BQ, (query_BD, memory_BD))
            score_BN = (state_BND @ query_BD.unsqueeze(-1)).squeeze(-1).float().masked_fill(~real_BN, -torch.inf)
            share_BN = score_BN.softmax(-1).to(state_BND.dtype)
            read_BD = (share_BN.unsqueeze(1) @ state_BND).squeeze(1)
            found_BQ = torch.cat([query_BD, read_BD], dim=-1)
        return found_BQ

    def trunk_groups(self) -> list[list[nn.Module]]:
        return [[self.embedding], [self.edges, self.matrices, self.own, self.update], [self.readout, self.out]]
