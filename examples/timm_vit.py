"""A timm vision transformer: stochastic depth, patch dropout and attention dropout through convert, checked.

Needs timm; random weights, nothing is downloaded. Run: python examples/timm_vit.py
"""

import timm
import torch

import puredrop

model = timm.create_model(
    "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, drop_path_rate=0.2, patch_drop_rate=0.25, num_classes=10
)
images = torch.randn(4, 3, 32, 32)
before = model.eval()(images)
model, report = puredrop.convert(model.train(), report=True)
print(report, end="\n\n")
print(puredrop.sites(model, images), end="\n\n")
print(puredrop.check(model, images), end="\n\n")
print("eval outputs as before:", torch.equal(model.eval()(images), before))
