import numpy as np
import pytest
import torch
from transformers import AutoModel, CLIPModel, DebertaConfig, DebertaV2Config, ModernBertConfig, SiglipModel

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.nn.adapt import frozen_prefix
from recbole_perpeft.nn.adapt.bank import AdapterBank
from recbole_perpeft.nn.adapt.frozen_prefix import FrozenPrefix, StoredBlock, frozen_depths
from recbole_perpeft.nn.adapt.methods import PeftMethod
from recbole_perpeft.nn.adapt.tuning import HoulsbyAdapters, LastBlocks, train_all, train_biases
from recbole_perpeft.nn.content import AdaptedContent
from recbole_perpeft.pretrained.dual import FoundationModel
from recbole_perpeft.pretrained.tower import PooledTower

TOP = r".*layers\.1\.self_attn\.(q|v)_proj"
VISION_TOP = r".*vision_model\.encoder\.layers\.1\.self_attn\.(q|v)_proj"
TARGETS = {TOP: {"image": 1, "text": 1}, VISION_TOP: {"image": 1, "text": 2}, r".*text_model.*fc2": {"image": 2}}


class Source:
    """Texts of several lengths; batches are trimmed to their longest."""

    n_rows, text_length = 7, 12

    def __init__(self, trims=True, lengths=(4, 12, 3, 8, 5, 12, 3)):
        generator = torch.Generator().manual_seed(0)
        self.trims = trims
        self.n_calls = 0
        self._pixels = torch.randint(0, 256, (self.n_rows, 3, 16, 16), generator=generator, dtype=torch.uint8)
        self._ids = torch.randint(4, 17, (self.n_rows, self.text_length), generator=generator)
        lengths = torch.tensor(lengths)
        places = torch.arange(self.text_length)
        self._ids[places == lengths.unsqueeze(1) - 1] = 3
        self._ids[places >= lengths.unsqueeze(1)] = 0
        self._ids[:, 0] = 2

    def rows_of(self, item_tokens):
        return torch.tensor([int(token) for token in item_tokens])

    def text_lengths(self, rows):
        return (self._ids[rows] != 0).sum(1) if self.trims else None

    def batch(self, rows):
        self.n_calls += 1
        ids = self._ids[rows]
        mask = (ids != 0).long()
        length = int(mask.sum(1).max()) if self.trims else self.text_length
        return {"pixel_values": self._pixels[rows], "input_ids": ids[:, :length], "attention_mask": mask[:, :length]}


@pytest.fixture(params=["clip", "siglip"])
def make_bank(request, clip_folder, siglip_folder):
    def make(peft_type="lora", **peft_config):
        torch.manual_seed(0)
        folder, model = {"clip": (clip_folder, CLIPModel), "siglip": (siglip_folder, SiglipModel)}[request.param]
        bank = AdapterBank(FoundationModel(model.from_pretrained(folder)), PeftMethod(peft_type, peft_config))
        with torch.no_grad():
            for parameter in bank.parameters_of(None):
                parameter += 0.3 * torch.randn_like(parameter)
        return bank, request.param == "clip"

    return make


def gradients_of(content, rows):
    vectors = content.encode_tokens([str(row) for row in rows], None)
    vectors.pow(3).sum().backward()
    return vectors.detach(), [parameter.grad for parameter in content.bank.parameters_of(None)]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("targets", TARGETS)
def test_vectors_and_gradients_stay_the_same(make_bank, tmp_path, targets, checkpointing):
    options = {"target_modules": targets, "lora_dropout": 0.0}
    (bank, trims), (other, _) = make_bank(**options), make_bank(**options)
    depths = frozen_depths(bank)
    assert depths == TARGETS[targets]
    source = Source(trims)
    prefix = FrozenPrefix(bank, depths, source, tmp_path, "inputs", 3, show_progress=False)
    rows = [5, 0, 2, 2, 6, 4]
    found = gradients_of(AdaptedContent(bank, source, torch.arange(7), 2, checkpointing, prefix), rows)
    expected = gradients_of(AdaptedContent(other, source, torch.arange(7), 6), rows)
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("peft_type", "peft_config"), [("lora", {}), ("ia3", {}), ("lora", {"target_modules": [r"layers.0.mlp.fc1"]})]
)
def test_no_block_is_frozen_below_an_adapter_in_the_first(make_bank, peft_type, peft_config):
    bank, _ = make_bank(peft_type, **peft_config)
    assert frozen_depths(bank) == {}


def test_states_are_computed_once_and_blocks_leave_the_model(make_bank, tmp_path):
    bank, trims = make_bank(target_modules=TOP)
    n_before = sum(parameter.numel() for parameter in bank.template.parameters())
    FrozenPrefix(bank, frozen_depths(bank), Source(trims), tmp_path, "inputs", 3, show_progress=False)
    assert sum(parameter.numel() for parameter in bank.template.parameters()) < n_before
    assert sum(isinstance(module, StoredBlock) for module in bank.modules()) == 2
    assert len(list(tmp_path.glob("states-of-*.npy"))) == 2
    again, source = make_bank(target_modules=TOP)[0], Source(trims)
    FrozenPrefix(again, frozen_depths(again), source, tmp_path, "inputs", 3, show_progress=False)
    assert source.n_calls == 1, "one row tells the shapes"


@pytest.mark.parametrize("lengths", [(4, 9, 3, 8, 5, 9, 3), (12,) * 7])
def test_states_of_texts_are_stored_as_far_as_the_longest_text_reaches(make_bank, tmp_path, monkeypatch, lengths):
    monkeypatch.setattr(frozen_prefix, "ROWS_AT_ONCE", 3)
    bank, trims = make_bank(target_modules=TOP)
    FrozenPrefix(bank, frozen_depths(bank), Source(trims, lengths), tmp_path, "inputs", 3, show_progress=False)
    (file,) = tmp_path.glob("states-of-text-*.npy")
    assert np.load(file).shape[:2] == (7, max(lengths) if trims else Source.text_length)


def test_a_damaged_file_is_written_again(make_bank, tmp_path):
    bank, trims = make_bank(target_modules=TOP)
    FrozenPrefix(bank, frozen_depths(bank), Source(trims), tmp_path, "inputs", 3, show_progress=False)
    file = min(tmp_path.glob("states-of-*.npy"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    bank, _ = make_bank(target_modules=TOP)
    FrozenPrefix(bank, frozen_depths(bank), Source(trims), tmp_path, "inputs", 3, show_progress=False)
    assert file.read_bytes() == whole


def test_checkpoints_and_exports_are_those_of_the_whole_model(make_bank, tmp_path):
    (bank, trims), (other, _) = make_bank(target_modules=TOP), make_bank(target_modules=TOP)
    FrozenPrefix(bank, frozen_depths(bank), Source(trims), tmp_path, "inputs", 3, show_progress=False)
    assert bank.state_dict().keys() == other.state_dict().keys()
    other.load_state_dict(bank.state_dict())
    other.load(bank.export(tmp_path, "module", None), None)


@pytest.mark.parametrize(
    "method",
    [PeftMethod("lora"), PeftMethod("ia3"), PeftMethod("vera"), HoulsbyAdapters(4), train_biases, train_all],
    ids=["lora", "ia3", "vera", "adapter", "bitfit", "full"],
)
@pytest.mark.parametrize("folder", ["clip_folder", "siglip_folder"])
def test_methods_reach_the_last_blocks_alone(request, folder, method):
    model = {"clip_folder": CLIPModel, "siglip_folder": SiglipModel}[folder]
    foundation = FoundationModel(model.from_pretrained(request.getfixturevalue(folder)))
    bank = AdapterBank(foundation, LastBlocks(method, 1))
    assert frozen_depths(bank) == {"image": 1, "text": 1}
    names = list(bank.modules_of_groups.of(None))
    assert any("layers/1" in name for name in names)
    assert not [name for name in names if "layers/0" in name or "embedding" in name]
    whole = AdapterBank(FoundationModel(model.from_pretrained(request.getfixturevalue(folder))), LastBlocks(method, 2))
    assert {name for name in whole.modules_of_groups.of(None) if "layers/1" in name} == {
        name for name in names if "layers/1" in name
    }


def test_last_blocks_are_those_of_the_spelled_out_modules(clip_folder):
    def bank(method):
        torch.manual_seed(0)
        return AdapterBank(FoundationModel(CLIPModel.from_pretrained(clip_folder)), method)

    found, spelled = bank(LastBlocks(PeftMethod("lora"), 1)), bank(PeftMethod("lora", {"target_modules": TOP}))
    assert frozen_depths(found) == frozen_depths(spelled)
    for key, tensor in spelled.state_dict().items():
        assert torch.equal(found.state_dict()[key], tensor)
    assert found.state_dict().keys() == spelled.state_dict().keys()


def test_more_blocks_than_there_are_and_modules_below_them_are_refused(clip_folder):
    def bank(method):
        return AdapterBank(FoundationModel(CLIPModel.from_pretrained(clip_folder)), method)

    with pytest.raises(PerPEFTError, match="adapt_last is 3, but the text encoder has 2 and the image encoder has 2"):
        bank(LastBlocks(PeftMethod("lora"), 3))
    with pytest.raises(PerPEFTError, match="adapts embeddings.patch_embedding.*below the last blocks"):
        bank(LastBlocks(PeftMethod("lora", {"target_modules": ["q_proj", "patch_embedding"]}), 1))
    assert frozen_depths(bank(LastBlocks(PeftMethod("lora"), 2))) == {}


TINY = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


@pytest.mark.parametrize(
    "config",
    [
        ModernBertConfig(**TINY, max_position_embeddings=32, pad_token_id=0, bos_token_id=2, eos_token_id=3),
        DebertaV2Config(**TINY, relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"]),
        DebertaConfig(**TINY, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    ],
    ids=lambda config: config.model_type,
)
def test_encoders_that_read_more_of_a_block_than_its_output(config, tmp_path):
    banks = []
    for _ in range(2):
        torch.manual_seed(0)
        tower = PooledTower(AutoModel.from_config(config), "text")
        tower.fingerprint, tower.content_size = "x", tower.width
        banks.append(AdapterBank(tower, LastBlocks(HoulsbyAdapters(4), 1)))
    source, rows = TextSource(), torch.tensor([3, 0, 5])
    prefix = FrozenPrefix(banks[0], frozen_depths(banks[0]), source, tmp_path, "inputs", 3, show_progress=False)
    batch = source.batch(rows)
    with prefix.supplied(batch | prefix.batch(rows, batch["input_ids"].shape[1])) as inputs:
        found = banks[0](None, **inputs)
    torch.testing.assert_close(found, banks[1](None, **batch), atol=1e-5, rtol=1e-4)


class TextSource(Source):
    """Its texts alone."""

    def batch(self, rows):
        batch = super().batch(rows)
        del batch["pixel_values"]
        return batch
