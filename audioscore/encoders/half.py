"""Matrix products of bfloat16 on a CPU, for the declared fast mode; what comes in and goes out is float32.

bfloat16 keeps 8 of a number's 24 binary digits. Processors that multiply it themselves do so about twice as fast.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class HalfLinear(nn.Module):
    """A linear layer whose products are of bfloat16. Shape: weight [O, C], bias [O] or None; [..., C] -> [..., O]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight.detach().bfloat16()
        self.bias = None if bias is None else bias.detach().bfloat16()

    def forward(self, values: Tensor) -> Tensor:
        return self.rounded(values).float()

    def rounded(self, values: Tensor) -> Tensor:
        """The same as bfloat16, for what goes on in that: a wide layer's numbers need not be written down twice."""
        return F.linear(values.bfloat16(), self.weight, self.bias)

    def part(self, rows: Tensor) -> "HalfLinear":
        """The layer of some of the channels that it makes. Shape: rows [N], of 0 to O - 1."""
        return HalfLinear(self.weight[rows], None if self.bias is None else self.bias[rows])
