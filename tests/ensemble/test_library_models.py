"""Models of transformers, as they are used: mappings in, their outputs out."""

import pytest
import torch

import puredrop

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'puredrop[libraries]'")


def bert():
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50, num_labels=3
    )
    inputs = {"input_ids": torch.randint(0, 50, (4, 9)), "attention_mask": torch.ones(4, 9, dtype=torch.long)}
    return transformers.BertForSequenceClassification(config), inputs


def vit():
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=16,
        patch_size=8,
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.2,
        num_labels=3,
    )
    return transformers.ViTForImageClassification(config), {"pixel_values": torch.randn(4, 3, 16, 16)}


@pytest.mark.parametrize("make", [bert, vit])
def test_members_of_models_of_transformers(make):
    model, inputs = make()
    ensemble = puredrop.DropoutEnsemble(model).survey(inputs)
    assert ensemble._survey.slow == ""
    assert ensemble.skipped == {}
    found = ensemble.predict(inputs, members=16)
    assert found.mean.shape == (4, 3)
    assert found.variance.max() > 1e-6
    # The same one by one, which is the reference.
    slow = puredrop.DropoutEnsemble(model).survey(inputs)
    object.__setattr__(slow._survey, "slow", "for this test")
    torch.testing.assert_close(slow.predict(inputs, members=16).mean, found.mean, rtol=1e-4, atol=1e-5)
    # As a tokenizer gives them, and with labels, which make the model return a loss as well.
    batch = transformers.BatchEncoding({**inputs, "labels": torch.tensor([0, 1, 2, 0])})
    torch.testing.assert_close(ensemble.predict(batch, members=16).mean, found.mean)
    members = {use.path for use in ensemble._survey.uses}
    assert {site.path for site in puredrop.sites(model, **inputs) if site.is_reached and site.p} == members


def test_a_model_without_rates_says_why_it_has_no_ensemble():
    config = transformers.LlamaConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=50,
        num_labels=3,
        pad_token_id=0,
    )
    model = transformers.LlamaForSequenceClassification(config)
    with pytest.raises(ValueError, match=r"model has no dropout|leaves nothing to chance"):
        puredrop.DropoutEnsemble(model).predict({"input_ids": torch.randint(1, 50, (2, 5))})
