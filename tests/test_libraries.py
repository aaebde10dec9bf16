"""Models of other libraries, converted: trained, saved, loaded into the model that was not, with the same answers.

Random weights, made from configurations; nothing is downloaded. A test whose library is not installed skips by its name.
"""

import copy
import importlib.util
import io

import pytest
import torch
from torch import nn

import puredrop
from puredrop import sites

IDS = torch.arange(12).view(2, 6)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def _declare_torchvisions_operators():
    """Let torchvision be imported where its compiled operators cannot be loaded: a CUDA wheel beside a CPU torch.

    It declares them for the compiler at import and fails if they do not exist. None of them is used here.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


@pytest.fixture(scope="session")
def library():
    """A library by its name."""
    kept = []
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            kept.append(_declare_torchvisions_operators())

    def find(name):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}: pip install 'puredrop[libraries,vision]'")
        return importlib.import_module(name)

    yield find
    kept.clear()


def bert(library):
    t = library("transformers")
    config = t.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return t.BertModel(config), {"input_ids": IDS}


def vit(library):
    t = library("transformers")
    config = t.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    return t.ViTModel(config), {"pixel_values": IMAGES}


def swin(library):
    t = library("transformers")
    config = t.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4)
    return t.SwinModel(config), {"pixel_values": IMAGES}


def lora(library):
    peft = library("peft")
    model, inputs = bert(library)
    config = peft.LoraConfig(r=2, lora_dropout=0.2, target_modules=["query", "value"])
    return peft.get_peft_model(model, config), inputs


def timm_vit(library):
    model = library("timm").create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=3,
        num_heads=2,
        num_classes=5,
        drop_path_rate=0.2,
        proj_drop_rate=0.1,
        attn_drop_rate=0.1,
        patch_drop_rate=0.25,
    )
    return model, {"x": IMAGES}


def timm_resnet(library):
    model = library("timm").create_model(
        "resnet10t", num_classes=5, drop_path_rate=0.2, drop_block_rate=0.1, drop_rate=0.2
    )
    return model, {"x": IMAGES}


def torchvision_convnext(library):
    library("torchvision")
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    model = ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 2)], stochastic_depth_prob=0.3, num_classes=5)
    return model, {"x": IMAGES}


def encoder(library):
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), {"src": torch.randn(3, 5, 16)}


def lstm(library):
    return nn.LSTM(8, 8, 2, dropout=0.3), {"input": torch.randn(5, 2, 8)}


MODELS = (bert, vit, swin, lora, timm_vit, timm_resnet, torchvision_convnext, encoder, lstm)


def tensor(output):
    if isinstance(output, torch.Tensor):
        return output
    return next(iter(output.values())) if hasattr(output, "values") else output[0]


@pytest.mark.filterwarnings("ignore")  # these libraries' own
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_train_save_load_into_the_model_that_was_not_converted(make, library):
    torch.manual_seed(0)
    model, inputs = make(library)
    original = copy.deepcopy(model)
    keys, before = list(model.state_dict()), tensor(model.eval()(**inputs))
    model, report = puredrop.convert(model.train(), report=True)
    assert report.replaced
    assert not report.skipped, str(report)
    assert list(model.state_dict()) == keys
    assert torch.equal(tensor(model.eval()(**inputs)), before)

    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    outputs = []
    for _ in range(2):
        torch.manual_seed(5)
        outputs.append(tensor(model(**inputs)))
    assert torch.equal(outputs[0], outputs[1])
    outputs[0].square().mean().backward()
    optimizer.step()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    original.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(tensor(original.eval()(**inputs)), tensor(model.eval()(**inputs)))
    model = puredrop.revert(model)
    assert repr(model) == repr(original)
    assert [type(m) for m in model.modules()] == [type(m) for m in original.modules()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_sites_lists_what_is_held(make, library):
    model, inputs = make(library)
    found = sites(model, inputs)
    assert found
    assert not [site for site in found if site.in_eval], str(found)
    converted = sites(puredrop.convert(model), inputs)
    assert not [site for site in converted if site.kind in ("draw", "unseen")], str(converted)
    assert {s.path for s in found if s.uses and ":" not in s.path} <= {s.path for s in converted if s.uses}


def test_a_rate_that_was_changed_goes_back(library):
    timm = library("timm")
    layer = timm.layers.DropPath(0.2)
    ours = puredrop.convert(layer)
    assert (ours.p, ours.scale_by_keep, type(ours)) == (0.2, True, puredrop.nn.DropPath)
    ours.p = 0.4
    assert puredrop.revert(ours).drop_prob == 0.4
    block = timm.layers.DropBlock2d(0.2, 5, gamma_scale=0.5)
    assert (puredrop.convert(block).p, puredrop.convert(block).couple_channels) == (0.1, True)
    noisy = nn.Sequential(timm.layers.DropBlock2d(0.2, with_noise=True))
    _, report = puredrop.convert(noisy, report=True)
    assert str(report).startswith("0: skipped, with_noise")
    assert type(noisy[0]) is timm.layers.DropBlock2d
