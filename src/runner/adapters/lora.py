"""LoRA through PEFT: trainable low-rank updates beside frozen matrices (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import copy
import re
from typing import Literal

from torch import Tensor, nn

from runner.adapters.base import Adapter
from runner.backbones.base import Backbone
from runner.config.kinds import Fraction, PositiveFloat, PositiveInt
from runner.errors import UserError

_OWN = re.compile(r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)\.")
_INNER = ".base_layer."


class LoRA(Adapter):
    """W x → W x + s·B A x with A (r × in) random and B (out × r) zero, W frozen.

    Args:
        rank: r. alpha: s = alpha / r, or alpha / √r with `rslora`.
        targets: "all-linear", or names of modules: the ends of their dotted names, convolutions included.
        dropout: on the input of A.
        rslora: rank-stabilised scaling (Kalajdzievski 2023, arXiv 2312.03732).
        dora: magnitude and direction apart (Liu et al. 2024, arXiv 2402.09353).
        bias: which biases are trained as well.
    """

    def __init__(
        self,
        *,
        rank: PositiveInt = 16,
        alpha: PositiveFloat = 32.0,
        targets: str | list[str] = "all-linear",
        dropout: Fraction = 0.0,
        rslora: bool = False,
        dora: bool = False,
        bias: Literal["none", "adapted", "all"] = "none",
    ) -> None:
        self.rank, self.alpha, self.targets, self.dropout = rank, alpha, targets, dropout
        self.rslora, self.dora, self.bias = rslora, dora, bias

    def adapt(self, backbone: Backbone) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        trunk = getattr(backbone, "trunk", backbone)  # a table's MLP is all trunk
        names = self._target_names(trunk)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type] - a float is fine
            lora_dropout=self.dropout,
            target_modules=names,
            use_rslora=self.rslora,
            use_dora=self.dora,
            bias={"none": "none", "adapted": "lora_only", "all": "all"}[self.bias],
        )
        inject_adapter_in_model(config, trunk)

    def _target_names(self, trunk: nn.Module) -> list[str]:
        """Full names of the modules to adapt."""
        modules = dict(trunk.named_modules())
        if self.targets == "all-linear":
            # Conv1D is GPT-2's linear layer, stored transposed.
            found = [n for n, m in modules.items() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"]
            if not found:
                convolutions = sorted({n.rpartition(".")[2] for n, m in modules.items() if isinstance(m, nn.Conv2d)})
                raise UserError(
                    "adapter.targets=all-linear: this backbone has no linear layers",
                    f"name modules: adapter.targets=[{','.join(convolutions)}]" if convolutions else "",
                    "runner ls backbone",
                )
            return found
        wanted = [self.targets] if isinstance(self.targets, str) else self.targets
        kinds = (nn.Linear, nn.Conv2d, nn.Embedding)
        fit = [n for n, m in modules.items() if isinstance(m, kinds) or type(m).__name__ == "Conv1D"]
        for end in wanted:
            if not any(n == end or n.endswith(f".{end}") for n in fit):
                last = sorted({n.rpartition(".")[2] for n in fit})
                raise UserError(f"adapter.targets: this backbone has no layer '{end}'", f"it has {', '.join(last)}")
        return [n for n in fit if any(n == end or n.endswith(f".{end}") for end in wanted)]

    def plain_name(self, name: str) -> str | None:
        return None if _OWN.search(name) else name.replace(_INNER, ".")

    def fold(self, model: nn.Module) -> dict[str, Tensor]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        folded = copy.deepcopy(model)  # subtracting again what was added would leave rounding behind
        for layer in folded.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.merge(safe_merge=True)
        state = {self.plain_name(name): tensor.detach() for name, tensor in folded.state_dict().items()}
        return {name: tensor for name, tensor in state.items() if name is not None}
