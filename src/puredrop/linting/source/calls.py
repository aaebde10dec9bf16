"""The calls that drop: their names, and where each takes its rate and its training flag."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CALLS", "WORDS", "Dropper", "canonical", "is_layer", "is_own"]

_LAYERS = frozenset(
    (
        *("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"),
        *("GaussianDropout", "DropPath", "DropBlock2d"),
    )
)
WORDS = (
    "ropout",
    "dot_product_attention",
    "flash_attn",
    "memory_efficient_attention",
    "stochastic_depth",
    "drop_path",
    "DropPath",
    "DropBlock",
    "drop_block",
    "multi_head_attention_forward",
    "preserve_rng_state",
    "enable_grad",
)
"""A file without any of these words calls nothing that drops."""


@dataclass(frozen=True)
class Dropper:
    """A function that drops.

    Args:
        code: code of the mistake that it stays on in eval mode.
        rate: position of the rate among the arguments.
        flag: position of the training flag; None if there is none, so that only the rate can switch it off.
        rate_name, flag_name: keywords of both.
        rate_default: the rate where none is given.
        flag_default: the flag where none is given.
        inplace: position of `inplace`; None if there is none.
        augments: whether it also serves to augment data, where no mode is meant to stop it; judged only with a flag.
    """

    code: str = "PD101"
    rate: int = 1
    flag: int | None = 2
    rate_name: str = "p"
    flag_name: str = "training"
    rate_default: float = 0.5
    flag_default: bool = True
    inplace: int | None = 3
    augments: bool = False


def _attention(rate: int, name: str = "dropout_p") -> Dropper:
    return Dropper("PD102", rate, None, name, rate_default=0.0, inplace=None)


_F, _G = "torch.nn.functional.", "torch_geometric.utils."
CALLS: dict[str, Dropper] = {
    **{_F + name: Dropper() for name in ("dropout", "dropout1d", "dropout2d", "dropout3d")},
    **{_F + name: Dropper(flag_default=False) for name in ("alpha_dropout", "feature_alpha_dropout")},
    **{
        f"torch.{name}": Dropper(flag_name="train", inplace=None)
        for name in ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "native_dropout")
    },
    _F + "scaled_dot_product_attention": _attention(4),
    _F + "multi_head_attention_forward": Dropper(
        "PD102", 10, 13, "dropout_p", rate_default=0.0, flag_default=True, inplace=None
    ),
    "flash_attn.flash_attn_func": _attention(3),
    "flash_attn.flash_attn_qkvpacked_func": _attention(1),
    "flash_attn.flash_attn_kvpacked_func": _attention(2),
    "flash_attn.flash_attn_varlen_func": _attention(7),
    "flash_attn.flash_attn_varlen_qkvpacked_func": _attention(3),
    "flash_attn.flash_attn_varlen_kvpacked_func": _attention(6),
    "xformers.ops.memory_efficient_attention": _attention(4, "p"),
    "torchvision.ops.stochastic_depth": Dropper(flag=3, inplace=None),
    "torchvision.ops.drop_block2d": Dropper(flag=4, inplace=3),
    "timm.layers.drop_path": Dropper(rate_name="drop_prob", rate_default=0.0, flag_default=False, inplace=None),
    "timm.models.layers.drop_path": Dropper(rate_name="drop_prob", rate_default=0.0, flag_default=False, inplace=None),
    _G + "dropout_adj": Dropper(rate=2, flag=5, inplace=None, augments=True),
    _G + "dropout_edge": Dropper(flag=3, inplace=None, augments=True),
    _G + "dropout_node": Dropper(flag=3, inplace=None, augments=True),
    _G + "dropout_path": Dropper(flag=6, inplace=None, augments=True),
}
CALLS |= {
    f"puredrop.functional.{name}": CALLS[_F + name]
    for name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
}
CALLS |= {
    "puredrop.functional.scaled_dot_product_attention": _attention(4),
    "puredrop.functional.drop_path": Dropper(inplace=None),
    "puredrop.functional.drop_block2d": Dropper(flag=3, inplace=None),
    "puredrop.functional.gaussian_dropout": Dropper(inplace=None),
    "puredrop.functional.relu_dropout": Dropper(inplace=None),
    "puredrop.functional.gelu_dropout": Dropper(inplace=None),
    "puredrop.functional.dropout_add": Dropper(rate=2, flag=3, inplace=None),
    "puredrop.functional.bias_dropout_add": Dropper(rate=3, flag=4, inplace=None),
}


def canonical(name: str) -> str:
    """Return a dotted name as this package's tables know it, whichever of a library's aliases was imported."""
    head, _, last = name.rpartition(".")
    if head.startswith("flash_attn") and "triton" not in head:
        return f"flash_attn.{last}"
    if head.startswith("xformers") and last == "memory_efficient_attention":
        return f"xformers.ops.{last}"
    if head.startswith("torch_geometric.utils"):
        return f"torch_geometric.utils.{last}"
    if head.startswith("torchvision.ops"):
        return f"torchvision.ops.{last}"
    if head == "torch.functional" or name.startswith("torch.nn.functional"):
        return f"torch.nn.functional.{last}"
    return name


def is_layer(name: str) -> bool:
    """Return whether a dotted name is a layer that drops."""
    package, _, last = name.rpartition(".")
    return last in _LAYERS and package.startswith(("torch.nn", "puredrop.nn", "timm.", "torchvision.ops"))


def is_own(name: str) -> bool:
    """Return whether a dotted name is a function of this library, which takes a key."""
    return name.startswith("puredrop.")
