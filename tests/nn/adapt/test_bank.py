import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AltCLIPConfig, AltCLIPModel, AutoModel, CLIPConfig

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.nn.adapt.bank import AdapterBank
from recbole_perpeft.nn.adapt.methods import PeftMethod, peft_settings, read_peft_config, supported_peft_types
from recbole_perpeft.pretrained.dual import FoundationModel

# Settings that fit a model of width 32; the third tells whether a new adapter leaves the model as it is.
METHODS = {
    "lora": ("lora", {}, True),
    "dora": ("lora", {"use_dora": True}, True),
    "lora-bias": ("lora", {"bias": "all"}, True),
    "lora-projection": ("lora", {"modules_to_save": ["visual_projection"]}, True),
    "ia3": ("ia3", {}, True),
    "vera": ("VeRA", {"r": 8}, True),
    "oft": ("oft", {"oft_block_size": 8}, True),
    "ln_tuning": ("ln_tuning", {}, True),
    "loha": ("loha", {"r": 4}, True),
    "lokr": ("lokr", {"r": 4}, True),
    "hra": ("hra", {"r": 4}, True),
    "shira": ("shira", {"r": 4}, True),
    "fourierft": ("fourierft", {"n_frequency": 20}, False),
    "vblora": ("vblora", {"vector_length": 8, "num_vectors": 16}, False),
}
# What peft 0.21 says of its own accord: about transformers 5, layer norms and sparse tensors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),
]
all_methods = pytest.mark.parametrize("method", METHODS)


def _bank(model, peft_type="lora", peft_config=None) -> AdapterBank:
    return AdapterBank(FoundationModel(model), PeftMethod(peft_type, peft_config))


def _move(bank: AdapterBank, group: int | None, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in bank.parameters_of(group):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


@all_methods
def test_a_new_module_leaves_the_model_as_it_is(tiny_clip, batch, method):
    peft_type, settings, neutral = METHODS[method]
    if not neutral:
        pytest.skip("this method starts with random adapters")
    plain = FoundationModel(tiny_clip())(**batch)
    torch.testing.assert_close(
        _bank(tiny_clip(), peft_type, settings).eval()(None, **batch), plain, atol=1e-5, rtol=1e-5
    )


@all_methods
def test_groups_are_independent(tiny_clip, batch, method):
    bank = _bank(tiny_clip(), *METHODS[method][:2]).eval()
    start = bank(None, **batch)
    bank.modules_of_groups.personalise(2)
    _move(bank, 0, seed=1)
    _move(bank, 1, seed=2)
    first, second = bank(0, **batch), bank(1, **batch)
    assert (first - second).abs().max() > 1e-3
    torch.testing.assert_close(bank(None, **batch), start, atol=0, rtol=0)
    torch.testing.assert_close(bank(0, **batch), first, atol=0, rtol=0)


@all_methods
def test_only_the_active_module_learns(tiny_clip, batch, method):
    bank = _bank(tiny_clip(), *METHODS[method][:2]).train()
    bank.modules_of_groups.personalise(2)
    before = {name: parameter.detach().clone() for name, parameter in bank.named_parameters()}
    optimizer = torch.optim.AdamW(bank.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        content = bank(1, **batch)
        (content * torch.linspace(-1, 1, bank.content_size)).sum().backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in bank.parameters_of(1))
    moved = {name for name, parameter in bank.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved
    assert all(name.startswith("modules_of_groups.1.") for name in moved)
    trainable = {id(parameter) for parameter in bank.parameters() if parameter.requires_grad}
    assert trainable == {id(parameter) for group in (None, 0, 1) for parameter in bank.parameters_of(group)}


@all_methods
def test_a_checkpoint_holds_all_that_is_needed_and_no_foundation_weights(tiny_clip, batch, method):
    torch.manual_seed(1)
    bank = _bank(tiny_clip(), *METHODS[method][:2]).eval()
    bank.modules_of_groups.personalise(2)
    _move(bank, 1)
    state = bank.state_dict()
    frozen = {parameter.data_ptr() for parameter in bank.template.parameters() if parameter.numel() > 32}
    assert not frozen & {tensor.data_ptr() for tensor in state.values()}
    torch.manual_seed(2)
    other = _bank(tiny_clip(), *METHODS[method][:2]).eval()
    other.modules_of_groups.personalise(2)
    other.load_state_dict(copy.deepcopy(state), strict=True)
    for group in (None, 1):
        torch.testing.assert_close(other(group, **batch), bank(group, **batch), atol=0, rtol=0)


def test_projections_that_layers_share_are_saved_once(tiny_clip):
    state = _bank(tiny_clip(), "vera", {"r": 8}).state_dict()
    untrained = [name for name in state if not name.startswith("modules_of_groups.")]
    assert sorted(name.split(".")[-2] for name in untrained) == ["vera_A", "vera_B"]


@all_methods
def test_exported_module_opens_in_peft(tiny_clip, batch, method, tmp_path):
    bank = _bank(tiny_clip(), *METHODS[method][:2]).eval()
    bank.modules_of_groups.personalise(2)
    _move(bank, 1)
    expected = bank(1, **batch)
    folder = bank.export(tmp_path, "group-1", 1)
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    foundation = FoundationModel(tiny_clip())
    foundation.model = PeftModel.from_pretrained(foundation.model, folder).eval()
    torch.testing.assert_close(foundation(**batch), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(bank(1, **batch), expected, atol=0, rtol=0)


@all_methods
def test_exported_module_comes_back(tiny_clip, batch, method, tmp_path):
    torch.manual_seed(1)
    bank = _bank(tiny_clip(), *METHODS[method][:2]).eval()
    bank.modules_of_groups.personalise(2)
    _move(bank, 1)
    folder = bank.export(tmp_path, "group-1", 1)
    torch.manual_seed(1)
    other = _bank(tiny_clip(), *METHODS[method][:2]).eval()
    other.modules_of_groups.personalise(3)
    before = other(None, **batch)
    other.load(folder, 2)
    torch.testing.assert_close(other(2, **batch), bank(1, **batch), atol=0, rtol=0)
    torch.testing.assert_close(other(None, **batch), before, atol=0, rtol=0)


def test_module_of_a_pickled_state_dict_comes_back(tiny_clip, batch, tmp_path):
    bank = _bank(tiny_clip(), "ia3").eval()
    _move(bank, None)
    folder = bank.export(tmp_path, "module", None)
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    other = _bank(tiny_clip(), "ia3").eval()
    other.load(folder, None)
    torch.testing.assert_close(other(None, **batch), bank(None, **batch), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("peft_type", "peft_config", "message"),
    [
        ("ia3", {}, "is a module of LORA, not of IA3"),
        ("lora", {"lora_alpha": 16}, "was made with lora_alpha = 8, not 16"),
        ("lora", {"target_modules": ["q_proj"]}, "0 tensors are missing .*8 are unknown .*v_proj"),
        ("lora", {"target_modules": ["q_proj", "v_proj", "k_proj"]}, "8 tensors are missing .*k_proj"),
    ],
)
def test_modules_of_other_settings_are_not_loaded(tiny_clip, tmp_path, peft_type, peft_config, message):
    folder = _bank(tiny_clip()).export(tmp_path, "module", None)
    with pytest.raises(PerPEFTError, match=message):
        _bank(tiny_clip(), peft_type, peft_config).load(folder, None)


def test_broken_module_folders_are_not_loaded(tiny_clip, tmp_path):
    bank = _bank(tiny_clip())
    folder = bank.export(tmp_path, "module", None)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(PerPEFTError, match="module are damaged"):
        bank.load(folder, None)
    weights.unlink()
    with pytest.raises(PerPEFTError, match=r"module has no adapter_model.safetensors or adapter_model.bin"):
        bank.load(folder, None)
    torch.save({"code": print}, folder / "adapter_model.bin")
    with pytest.raises(PerPEFTError, match="hold more than tensors"):
        bank.load(folder, None)
    config.write_text("{")
    with pytest.raises(PerPEFTError, match=r"adapter_config.json is no configuration"):
        bank.load(folder, None)
    config.unlink()
    with pytest.raises(PerPEFTError, match=r"adapter_config.json is missing"):
        bank.load(folder, None)


@all_methods
def test_settings_of_a_saved_module_make_the_same_module(tiny_clip, tmp_path, method):
    bank = _bank(tiny_clip(), *METHODS[method][:2])
    folder = bank.export(tmp_path, "module", None)
    twin = _bank(tiny_clip(), *peft_settings(read_peft_config(folder)))
    twin.load(folder, None)


def test_settings_of_a_module_are_those_that_differ_from_the_defaults():
    assert peft_settings(LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["v_proj", "q_proj"])) == (
        "lora",
        {},
    )
    assert peft_settings(LoraConfig(r=8, lora_alpha=8, lora_dropout=0.1, target_modules=["v_proj", "k_proj"])) == (
        "lora",
        {"r": 8, "target_modules": ["k_proj", "v_proj"]},
    )


def test_same_as_a_plain_peft_model_in_training_too(tiny_clip, batch):
    bank = _bank(tiny_clip(), "lora", {"lora_dropout": 0.0}).train()
    bank.modules_of_groups.personalise(2)
    _move(bank, 1)
    plain = FoundationModel(tiny_clip())
    plain.model = get_peft_model(plain.model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    weights = {key.replace("/", "."): value for key, value in bank.modules_of_groups["1"].items()}
    trainable = {name: p for name, p in plain.named_parameters() if p.requires_grad}
    assert {name.removeprefix("model.base_model.model.") for name in trainable} == set(weights)
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(weights[name.removeprefix("model.base_model.model.")])
    slope = torch.linspace(-1, 1, bank.content_size)
    contents = [bank(1, **batch), plain(**batch)]
    for content in contents:
        (content * slope).sum().backward()
    torch.testing.assert_close(*contents)
    for name, parameter in trainable.items():
        key = name.removeprefix("model.base_model.model.").replace(".", "/")
        torch.testing.assert_close(bank.modules_of_groups["1"][key].grad, parameter.grad)


def test_defaults_are_those_of_the_paper(tiny_clip):
    config = _bank(tiny_clip()).template.model.active_peft_config
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (4, 8, 0.1, "none")
    assert set(config.target_modules) == {"q_proj", "v_proj"}
    config = _bank(tiny_clip(), "lora", {"lora_alpha": 16}).template.model.active_peft_config
    assert (config.r, config.lora_alpha) == (4, 16), "keys are replaced one by one"
    config = _bank(tiny_clip(), "ia3").template.model.active_peft_config
    assert set(config.target_modules) == {"k_proj", "v_proj", "fc1"}
    assert set(config.feedforward_modules) == {"fc1"}
    assert not _bank(
        tiny_clip(), "ia3", {"target_modules": ["k_proj"]}
    ).template.model.active_peft_config.feedforward_modules


@pytest.mark.parametrize(("peft_type", "n_parameters"), [("lora", 245_760), ("ia3", 46_080)])
def test_parameter_counts_of_the_paper(peft_type, n_parameters):
    with torch.device("meta"):
        model = AutoModel.from_config(CLIPConfig())  # the sizes of openai/clip-vit-base-patch32
        assert sum(parameter.numel() for parameter in model.parameters()) == 151_277_313
        bank = _bank(model, peft_type)
    assert bank.content_size == 1024
    assert sum(parameter.numel() for parameter in bank.parameters_of(None)) == n_parameters


def test_dropout_of_the_adapter_follows_train_and_that_of_the_foundation_does_not(tiny_clip, batch):
    bank = _bank(_with_dropout(tiny_clip()))
    _move(bank, None)
    assert not torch.equal(bank.train()(None, **batch), bank(None, **batch))
    assert torch.equal(bank.eval()(None, **batch), bank(None, **batch))
    undropped = _bank(_with_dropout(tiny_clip()), "lora", {"lora_dropout": 0.0}).train()
    assert torch.equal(undropped(None, **batch), undropped(None, **batch))


def _with_dropout(model):
    for layer in model.text_model.encoder.layers:
        layer.self_attn.dropout = 0.5
    return model


def test_personalise_again_starts_from_the_global_module(tiny_clip, batch):
    bank = _bank(tiny_clip()).eval()
    _move(bank, None)
    bank.modules_of_groups.personalise(3)
    _move(bank, 0)
    bank.modules_of_groups.personalise(2)
    assert list(bank.modules_of_groups) == ["global", "0", "1"]
    torch.testing.assert_close(bank(0, **batch), bank(None, **batch), atol=0, rtol=0)
    assert not {id(p) for p in bank.parameters_of(0)} & {id(p) for p in bank.parameters_of(None)}


def test_a_copy_of_a_bank_is_independent(tiny_clip, batch):
    bank = _bank(tiny_clip()).eval()
    twin = copy.deepcopy(bank)
    before = bank(None, **batch)
    _move(twin, None)
    twin.train()
    torch.testing.assert_close(bank(None, **batch), before, atol=0, rtol=0)
    assert not torch.equal(twin(None, **batch), twin(None, **batch)), "its dropout is its own"


def test_content_is_float32_under_autocast(tiny_clip, batch):
    bank = _bank(tiny_clip()).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        content = bank(None, **batch)
    assert content.dtype == torch.float32
    content.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in bank.parameters_of(None))


def test_siglip_can_be_adapted(siglip_folder, batch):
    foundation = FoundationModel.from_pretrained(siglip_folder)
    plain = foundation(**batch)
    bank = AdapterBank(foundation, PeftMethod("ia3")).eval()
    torch.testing.assert_close(bank(None, **batch), plain)
    _move(bank, None)
    assert (bank(None, **batch) - plain).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("peft_type", "peft_config", "message"),
    [
        ("lorra", {}, "peft_type: 'lorra' is no method of the installed peft"),
        ("adalora", {}, "adalora cannot be used here: .*training loop of its own"),
        ("prefix_tuning", {}, "prefix_tuning cannot be used here: it changes the input"),
        ("DoRA", {}, "use_dora: true"),
        ("lora", {"rank": 4}, "peft_config: lora has no key 'rank'.*its keys are"),
        ("lora", {"lora_alfa": 4}, r"lora has no key 'lora_alfa' \(did you mean lora_alpha\?\)"),
        ("lora", {"task_type": "CAUSAL_LM"}, "lora has no key 'task_type'"),
        (
            "lora",
            {"target_modules": ["query"]},
            "'query', which matches no module of CLIPModel; it has modules named fc1",
        ),
        ("lora", {"target_modules": ["q_proj", "value"]}, "'value', which matches no module"),
        ("lora", {"target_modules": ".*query"}, "cannot be put into CLIPModel.*modules named fc1"),
        ("ia3", {"feedforward_modules": ["fc2"]}, "ia3 refuses .*subset"),
        ("lora", {"r": 0}, "positive integer"),
        ("lora", {"init_lora_weights": "pissa"}, "changing the frozen weights"),
        ("lora", {"init_lora_weights": "eva"}, "'eva' cannot be used here: it needs a pass"),
        ("lora", {"init_lora_weights": "lora_ga"}, "'lora_ga' cannot be used here: it needs a pass"),
        ("lora", {"alora_invocation_tokens": [5]}, r"alora_invocation_tokens \[5\] cannot be used here"),
        ("vera", {"target_modules": ["layer_norm1"]}, "cannot be put into CLIPModel"),
    ],
)
def test_wrong_settings_are_explained(tiny_clip, peft_type, peft_config, message):
    with pytest.raises(PerPEFTError, match=message):
        _bank(tiny_clip(), peft_type, peft_config)


def test_supported_methods():
    names = supported_peft_types()
    assert {"lora", "ia3", "vera", "oft", "ln_tuning", "loha", "lokr", "hra"} <= set(names)
    assert not {"adalora", "prompt_tuning", "xlora", "none"} & set(names)


def test_a_tower_that_nothing_would_adapt_is_told():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 40, "max_position_embeddings": 20, "projection_dim": 12, "pad_token_id": 0}
    images = {**sizes, "image_size": 32, "patch_size": 8, "projection_dim": 12}
    config = AltCLIPConfig(text_config=text | {"project_dim": 16}, vision_config=images, projection_dim=12)
    with pytest.raises(PerPEFTError, match="the text tower of AltCLIPModel has no modules that lora usually adapts"):
        AdapterBank(FoundationModel(AltCLIPModel(config)), PeftMethod("lora"))
    for chosen in {"target_modules": ["q_proj"]}, {"layers_to_transform": [1], "target_modules": ["q_proj"]}:
        assert AdapterBank(FoundationModel(AltCLIPModel(config)), PeftMethod("lora", chosen)).parameters_of(None)
