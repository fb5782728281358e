"""Muon for the matrices of a network, AdamW for all else."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of a quintic that brings singular values to 0.7 to 1.2 in five steps (Jordan et al.)."""
RMS_OF_ADAMW = 0.2
"""Root mean square of AdamW's usual steps, in learning rates."""


class Muon(Optimizer):
    """Steps with like singular values (Jordan et al., 2024), of AdamW's size (Liu et al., arXiv 2502.16982).

    As torch.optim.Muon takes them, but in the parameters' own precision, and with matrices of one shape together:
    torch's computes in bfloat16, for which many processors have no instructions (docs/lab-book.md, 50). A parameter
    with more than two axes is the matrix of its first against all others.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step by the gradients at hand."""
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state["momentum_buffer"] = torch.zeros_like(parameter)
                    momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - MOMENTUM)
                    matrix = parameter.grad.lerp(momentum, MOMENTUM).flatten(1)  # Nesterov's
                    alike[len(matrix), matrix.shape[1]].append((parameter, matrix))
            for shape, members in alike.items():
                steps = orthogonalised(torch.stack([matrix for _, matrix in members]))
                for (parameter, _), step in zip(members, steps, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(step.reshape(parameter.shape), alpha=group["lr"] * RMS_OF_ADAMW * max(shape) ** 0.5)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Bring the singular values of n×r×c matrices near to 1, and leave their singular vectors as they are."""
    x = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if matrices.shape[1] > matrices.shape[2] else x


class MuonAdamW(Optimizer):
    """Muon steps layers that mix channels, AdamW all other parameters: norms, biases, depthwise layers, banks of heads.

    Muon makes every singular value of a matrix's step equally large, so that directions which gradients seldom show are
    learned as fast as those they always show. One learning rate fits both.

    Each group has a ``factor``, by which whoever sets its ``lr`` multiplies the learning rate: a module may slow some
    of its parameters down by their attribute ``learning_rate_factor``, such as those of an encoder learned before.
    """

    def __init__(self, model: nn.Module, learning_rate: float, weight_decay: float) -> None:
        groups: dict[tuple[bool, bool, float], dict[str, nn.Parameter]] = defaultdict(dict)
        for prefix, module in model.named_modules():
            mixes = isinstance(module, nn.Conv2d | nn.Linear) and getattr(module, "groups", 1) == 1
            for name, parameter in module.named_parameters(prefix, recurse=False):
                if parameter.requires_grad:
                    is_matrix = parameter.ndim >= 2
                    factor = getattr(parameter, "learning_rate_factor", 1.0)
                    groups[mixes and is_matrix, is_matrix, factor][name] = parameter
        super().__init__(
            [{"params": list(members.values()), "factor": factor} for (_, _, factor), members in groups.items()],
            {"lr": learning_rate},
        )
        self._inner: list[Optimizer] = []
        """One for each group."""
        self._names = [list(members) for members in groups.values()]
        for (by_muon, is_matrix, _), members in groups.items():
            parameters, decay = list(members.values()), weight_decay if is_matrix else 0.0
            if by_muon:
                self._inner.append(Muon(parameters, learning_rate, decay))
            else:
                self._inner.append(AdamW(parameters, learning_rate, weight_decay=decay, fused=True))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step by the gradients at hand."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, inner in zip(self.param_groups, self._inner, strict=True):
            inner.param_groups[0]["lr"] = group["lr"]
            inner.step()
        return loss

    def moments(self) -> dict[str, Tensor]:
        """Give what resuming needs, as ``kind.parameter``."""
        return {
            f"{kind}.{name}": value
            for inner, name, parameter in self._members()
            for kind, value in inner.state.get(parameter, {}).items()
        }

    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Take up what `moments` gave; raises KeyError where it was another optimizer's."""
        left = dict(moments)
        for inner, name, parameter in self._members():
            kinds = ("step", "exp_avg", "exp_avg_sq") if isinstance(inner, AdamW) else ("momentum_buffer",)
            for kind in kinds:
                value = left.pop(f"{kind}.{name}", None)
                if value is None:  # it had no gradient yet
                    continue
                # The fused update runs through memory, so moments need their parameter's layout (channels last).
                is_alike = value.shape == parameter.shape
                own = torch.empty_like(parameter).copy_(value) if is_alike else value.to(parameter.device)
                inner.state[parameter][kind] = own
        if left:
            raise KeyError(next(iter(left)))

    def _members(self) -> Iterator[tuple[Optimizer, str, nn.Parameter]]:
        """Each parameter as its inner optimizer knows it, and its name."""
        for names, inner in zip(self._names, self._inner, strict=True):
            for name, parameter in zip(names, inner.param_groups[0]["params"], strict=True):
                yield inner, name, parameter
