"""Codes of mistakes: each with its severity, title, reason and fix."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CODES", "Code"]


@dataclass(frozen=True)
class Code:
    """A kind of mistake.

    Args:
        severity: "error" (results are wrong), "warning" (probably unintended), "note", or "unknown" (not decided).
        title: description of the mistake in a few words.
        why: reason why the mistake matters.
        fix: change that mends it.
    """

    severity: str
    title: str
    why: str
    fix: str


CODES = {
    "PD001": Code(
        "error",
        "the file cannot be read",
        "a file that is not read may hold mistakes",
        "mend the syntax, or leave the file out of the check",
    ),
    "PD002": Code(
        "unknown",
        "not decided whether this dropout is off in eval mode",
        "the rate or the flag comes from where the check cannot follow it",
        "pass training=self.training; if the code is right, say so: # puredrop: ignore[PD002]",
    ),
    "PD101": Code(
        "error",
        "functional dropout is always on",
        "F.dropout acts unless it is told training=False, so model.eval() does not switch it off",
        "pass training=self.training, or use an nn.Dropout layer",
    ),
    "PD102": Code(
        "error",
        "attention dropout is always on",
        "scaled_dot_product_attention drops whatever the mode: model.eval() does not switch it off",
        "pass dropout_p=self.p if self.training else 0.0",
    ),
    "PD103": Code(
        "warning",
        "random numbers are drawn in eval mode",
        "predictions then differ from call to call",
        "draw only where self.training is true",
    ),
    "PD104": Code(
        "error",
        "a module stays in training mode after model.eval()",
        "its dropout goes on at inference; a train() of the module's own is the usual reason",
        "let train(mode) call super().train(mode)",
    ),
    "PD105": Code(
        "error",
        "dropout is created in forward",
        "a new layer is in training mode, so model.eval() does not switch it off",
        "create it in __init__, or call F.dropout(x, p, self.training)",
    ),
    "PD106": Code(
        "error",
        "dropout layers in a plain list or dict",
        "model.eval() does not reach modules in a list or a dict, so they go on dropping",
        "hold them in nn.ModuleList or nn.ModuleDict",
    ),
    "PD201": Code(
        "warning",
        "a dropout is held and never called",
        "its rate has no effect, whatever the configuration says",
        "call it in forward, or remove it",
    ),
    "PD202": Code(
        "warning",
        "dropout never drops in training mode",
        "a rate is given, and in training mode too the input is returned as it is",
        "pass training=self.training, and let train(mode) reach the module",
    ),
    "PD203": Code(
        "error",
        "the result of dropout is thrown away",
        "dropout returns a new tensor and leaves its input as it was, so nothing is dropped",
        "use the result: x = self.drop(x)",
    ),
    "PD204": Code(
        "error",
        "eval mode sets the rate to 0 for good",
        "after the first evaluation the model trains without dropout",
        "keep the rate, and pass training=self.training",
    ),
    "PD205": Code(
        "warning",
        "a rate is held and never handed on",
        "its value has no effect, whatever the configuration says",
        "hand it to the layer or the call that drops, or remove it",
    ),
    "PD301": Code(
        "note",
        "every rate is 0",
        "the model has dropout layers and drops nothing",
        "set a rate, or remove the layers",
    ),
    "PD302": Code(
        "error",
        "the rate is 1",
        "everything is dropped",
        "p is the share that is dropped, not what is kept",
    ),
    "PD303": Code(
        "warning",
        "the rate is 0.9 or more",
        "hardly anything is left to learn from; often the share to keep was meant",
        "p is the share that is dropped: keep_prob 0.9 is p=0.1",
    ),
    "PD304": Code(
        "error",
        "the rate is the training flag",
        "p is then 1 in training mode, where everything is dropped, and 0 in eval mode",
        "pass both: F.dropout(x, p, training=self.training)",
    ),
    "PD305": Code(
        "warning",
        "the rate is a keep-probability",
        "p is the share that is dropped: with 0.9 a tenth is kept",
        "pass p=1 - keep_prob",
    ),
    "PD401": Code(
        "warning",
        "dropout straight before BatchNorm",
        "the running variance is that of dropped activations, larger than at inference (Li et al., CVPR 2019)",
        "put the dropout after the last BatchNorm, or before the layer that BatchNorm follows",
    ),
    "PD402": Code(
        "warning",
        "dropout after the last layer",
        "outputs themselves are zeroed and scaled in training, and the loss sees that",
        "put the dropout before the last layer",
    ),
    "PD403": Code(
        "note",
        "dropout straight before a regression output",
        "the variance it adds to a single output does not average out in a squared loss",
        "compare with and without it: puredrop compare",
    ),
    "PD404": Code(
        "note",
        "elementwise dropout on a convolution's maps",
        "neighbouring elements carry the same information, so little is dropped",
        "drop whole channels: nn.Dropout2d, or DropBlock2d",
    ),
    "PD405": Code(
        "warning",
        "one mask is used twice in a forward",
        "what is dropped twice is scaled twice, and the expectation is no longer the input",
        "use two layers, or two keys",
    ),
    "PD406": Code(
        "error",
        "the recomputation draws other masks",
        "the backward pass then differentiates another network than the forward ran",
        "torch.utils.checkpoint with preserve_rng_state=True, or puredrop.reproducible",
    ),
    "PD407": Code(
        "warning",
        "the same key in every training step",
        "the same units are dropped in every step, so the others are never regularized",
        "fold the step into the key: key.fold_in(step)",
    ),
    "PD501": Code(
        "warning",
        "recurrent dropout with one layer",
        "torch drops between layers, and there is nothing between one",
        "use two or more layers, or a Dropout layer after it",
    ),
    "PD601": Code(
        "error",
        "dropout is off in a training step",
        "the model trains without the dropout that its configuration states",
        "call model.train() before the step; after an evaluation or a callback the mode is still that of evaluation",
    ),
    "PD602": Code(
        "error",
        "dropout is on in an evaluation",
        "scores are noisy and usually too low",
        "call model.eval() before the evaluation; if the model shall drop there, name it: puredrop.watch(allow=...)",
    ),
}
