"""Models of timm as image encoders, through transformers' wrapper."""

import pytest
import torch

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.nn.adapt.tuning import tune
from recbole_perpeft.pretrained.tower import Backbone, describe_backbone
from recbole_perpeft.runs.run import load, run
from support.timm_models import VIT, has_timm, make_timm, make_timm_hub
from support.tiny_backbones import encode, method

pytestmark = pytest.mark.skipif(
    not has_timm(), reason="timm and torchvision are not installed, or do not fit to this torch"
)
PIXELS = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
TOKENS = {
    "class token": ("vit_tiny_patch16_224", VIT),
    "no class token": ("vit_tiny_patch16_224", VIT | {"class_token": False, "global_pool": "avg"}),
    "attention pooling": ("vit_tiny_patch16_224", VIT | {"class_token": False, "global_pool": "map"}),
    "registers": ("vit_tiny_patch16_224", VIT | {"reg_tokens": 2, "global_pool": "avg"}),
    "eva": ("eva02_tiny_patch14_224", VIT | {"img_size": 32}),
}
STAGES = ["resnet10t", "efficientnet_lite0", "convnext_atto", "mobilenetv3_small_050"]


def theirs(tower, pixels=PIXELS):
    """Vectors of timm's own head."""
    model = tower.model.timm_model
    return model.forward_head(model.forward_features(tower.normalised(pixels)))


@pytest.mark.parametrize("name", TOKENS)
@torch.no_grad()
def test_blocks_and_vectors_are_those_of_timm(tmp_path, name):
    architecture, arguments = TOKENS[name]
    folder = make_timm(tmp_path / "vit", architecture, **arguments)
    tower = Backbone.from_pretrained(folder, "image")
    assert (tower.n_layers, tower.width, tower.pooling) == (3, 16, "own")
    assert describe_backbone(folder, "image")[1:] == (3, 16)
    torch.testing.assert_close(tower.pixel_shift.flatten(), torch.tensor([0.5 / 0.2, 0.4 / 0.3, 0.3 / 0.4]))
    encoded = encode(tower, pixel_values=PIXELS)
    model = tower.model.timm_model
    last, blocks = model.forward_intermediates(
        tower.normalised(PIXELS), indices=3, output_fmt="NLC", return_prefix_tokens=True
    )
    for state, block in zip(encoded.states[1:], blocks, strict=True):
        expected = torch.cat([block[1], block[0]], dim=1) if model.num_prefix_tokens else block
        torch.testing.assert_close(state, expected)
    torch.testing.assert_close(encoded.last, last)
    states, final = tower.pooled_states((0, 2, 3), "own", pixel_values=PIXELS)
    torch.testing.assert_close(final, theirs(tower))
    torch.testing.assert_close(states[:, 1], model.pool(encoded.states[2]))
    assert states.shape == (4, 3, 16)
    if name in ("class token", "registers", "eva"):
        classes, final = tower.pooled_states((1,), "cls", pixel_values=PIXELS)
        torch.testing.assert_close(classes[:, 0], encoded.states[1][:, 0])
    else:
        with pytest.raises(PerPEFTError, match="'cls' does not go with TimmWrapperModel; choose one of mean, own"):
            tower.check_pooling("cls")


@pytest.mark.parametrize("architecture", STAGES)
@torch.no_grad()
def test_stages_of_different_width_give_final_vectors(tmp_path, architecture):
    tower = Backbone.from_pretrained(make_timm(tmp_path / "cnn", architecture), "image")
    states, final = tower.pooled_states((), tower.check_pooling(None), pixel_values=PIXELS)
    torch.testing.assert_close(final, theirs(tower))
    assert (tower.n_layers, states.shape, final.shape) == (0, (4, 0, tower.width), (4, tower.width))
    with pytest.raises(PerPEFTError, match="stages of TimmWrapperModel differ in width"):
        tower.pooled_states((1,), "own", pixel_values=PIXELS)


@torch.no_grad()
def test_a_folder_as_timm_writes_it(tmp_path):
    import timm

    tower = Backbone.from_pretrained(make_timm_hub(tmp_path / "hub", "resnet10t"), "image")
    torch.manual_seed(0)
    expected = timm.create_model("resnet10t", num_classes=7).eval()
    expected.reset_classifier(0)
    torch.testing.assert_close(
        tower.pooled_states((), "own", pixel_values=PIXELS)[1], expected(tower.normalised(PIXELS))
    )


@pytest.mark.parametrize("adaptation", ["full", "adapter", "lora", "bitfit"])
def test_a_vit_is_adapted(tmp_path, adaptation):
    folder = make_timm(tmp_path / "vit", *TOKENS["class token"][:1], **VIT)
    plain, tuned = (Backbone.from_pretrained(folder, "image") for _ in range(2))
    trained, _ = tune(tuned, method(adaptation, adapter_rank=4, lora_rank=2))
    with torch.no_grad():
        before = plain.pooled_states((), "own", pixel_values=PIXELS)[1]
    after = tuned.pooled_states((), "own", pixel_values=PIXELS)[1]
    if adaptation != "adapter":
        torch.testing.assert_close(after, before)
    after.square().sum().backward()
    parameters = dict(tuned.named_parameters())
    assert trained and all(parameters[name].grad is not None for name in trained)
    blocks = {name.split(".")[3] for name in trained if ".blocks." in name}
    assert adaptation == "bitfit" or len(blocks) == 3


def test_a_block_that_reads_a_fused_weight_takes_no_lora(tmp_path):
    tower = Backbone.from_pretrained(make_timm(tmp_path / "eva", *TOKENS["eva"][:1], **TOKENS["eva"][1]), "image")
    with pytest.raises(PerPEFTError, match="TimmWrapperModel has no modules that lora usually adapts"):
        tune(tower, method("lora"))


@pytest.mark.parametrize(
    ("architecture", "name", "settings"),
    [
        ("vit", "IISAN", {"n_blocks": 3}),
        ("vit", "MoRec", {"adaptation": "lora"}),
        ("cnn", "MoRec", {"adaptation": "frozen"}),
        ("cnn", "MoRec", {"adaptation": "full"}),
    ],
)
def test_a_run_learns_and_its_checkpoint_gives_the_same_numbers(
    aspects_settings, tmp_path, architecture, name, settings
):
    folder = (
        make_timm(tmp_path / "vit", "vit_tiny_patch16_224", **VIT)
        if architecture == "vit"
        else make_timm(tmp_path / "cnn", "resnet10t", channels=[8, 8, 8, 16], stem_width=4)
    )
    encoders = {"image_encoder": str(folder), "text_encoder": None, "cache_folder": str(tmp_path / "cache")}
    side = {"modality": "intra"} if name == "IISAN" else {"backbone_train_mode": True}
    result = run(name, config_dict=aspects_settings | encoders | settings | side | {"epochs": 1})
    config, model, *_, test_data = load(result["run_folder"])
    config["checkpoint_dir"] = result["run_folder"]
    trainer = model.trainer_class(config, model)
    assert trainer.evaluate(test_data, load_best_model=False) == pytest.approx(result["test_result"])


def test_a_side_network_says_what_it_cannot_read(aspects_settings, tmp_path):
    folder = make_timm(tmp_path / "cnn", "resnet10t")
    settings = aspects_settings | {"image_encoder": str(folder), "cache_folder": str(tmp_path / "cache")}
    with pytest.raises(PerPEFTError, match="a side network reads states of one width.*choose MoRec with adaptation"):
        run("IISAN", config_dict=settings)
    for adaptation, message in {
        "adapter": "stages of TimmWrapperModel differ in width",
        "lora": "has no modules",
    }.items():
        with pytest.raises(PerPEFTError, match=message):
            run("MoRec", config_dict=settings | {"adaptation": adaptation})
