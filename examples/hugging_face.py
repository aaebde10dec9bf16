"""A Hugging Face BERT: its dropout listed, converted, trained for a step, and the masks repeated by a seed.

Needs transformers; random weights, nothing is downloaded. Run: python examples/hugging_face.py
"""

import torch
from transformers import BertConfig, BertForSequenceClassification

import puredrop

config = BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
model = BertForSequenceClassification(config)
batch = {"input_ids": torch.randint(100, (4, 12)), "labels": torch.tensor([0, 1, 1, 0])}

model, report = puredrop.convert(model, report=True)
print(report, end="\n\n")
print(puredrop.sites(model, batch), end="\n\n")

optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
model.train()
losses = []
for _ in range(2):
    torch.manual_seed(3)
    losses.append(model(**batch).loss)
losses[0].backward()
optimizer.step()
print(f"loss {losses[0].item():.4f}, again with the same seed {losses[1].item():.4f}")
puredrop.revert(model)
