"""Muon for the matrices of a network, AdamW for all else."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

try:
    from torch.optim import Muon
except ImportError:  # before torch 2.9
    Muon = None  # type: ignore[assignment, misc]

logger = logging.getLogger(__name__)


class MuonAdamW(Optimizer):
    """Muon steps layers that mix channels, AdamW all other parameters: norms, biases, depthwise layers, banks of heads.

    Muon (Jordan et al., 2024) makes every singular value of a matrix's step equally large, so that directions which
    gradients seldom show are learned as fast as those they always show. A convolution's matrix is outputs × (inputs ·
    kernel). Its steps are scaled to AdamW's usual size (Liu et al., arXiv 2502.16982), so one learning rate fits both.

    Each group has a ``factor``, by which whoever sets its ``lr`` multiplies the learning rate: a module may slow some
    of its parameters down by their attribute ``learning_rate_factor``, such as those of an encoder learned before.
    """

    def __init__(self, model: nn.Module, learning_rate: float, weight_decay: float) -> None:
        if Muon is None:
            logger.warning("torch %s has no Muon: AdamW steps all, which takes a quarter more steps", torch.__version__)
        groups: dict[tuple[bool, bool, float], dict[str, nn.Parameter]] = defaultdict(dict)
        for prefix, module in model.named_modules():
            mixes = Muon is not None and isinstance(module, nn.Conv2d | nn.Linear) and getattr(module, "groups", 1) == 1
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
                matrices = [nn.Parameter(_as_matrix(parameter.detach(), parameter)) for parameter in parameters]
                self._inner.append(Muon(matrices, learning_rate, decay, adjust_lr_fn="match_rms_adamw"))
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
            if not isinstance(inner, AdamW):
                # Muon knows each weight as a matrix in the same memory.
                for parameter, matrix in zip(group["params"], inner.param_groups[0]["params"], strict=True):
                    matrix.data = _as_matrix(parameter.detach(), parameter)
                    matrix.grad = None if parameter.grad is None else _as_matrix(parameter.grad, parameter)
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
                inner.state[parameter][kind] = torch.empty_like(parameter).copy_(value) if is_alike else value
        if left:
            raise KeyError(next(iter(left)))

    def _members(self) -> Iterator[tuple[Optimizer, str, nn.Parameter]]:
        """Each parameter as its inner optimizer knows it, and its name."""
        for names, inner in zip(self._names, self._inner, strict=True):
            for name, parameter in zip(names, inner.param_groups[0]["params"], strict=True):
                yield inner, name, parameter


def _as_matrix(tensor: Tensor, like: nn.Parameter) -> Tensor:
    """Flatten all axes but the first, in the order in which ``like`` has them in memory."""
    if like.ndim == 4 and not like.is_contiguous():
        tensor = tensor.permute(0, 2, 3, 1)  # channels last
    return tensor.reshape(len(tensor), -1)
