"""Models take item vectors from the file of their run while they are those that they would compute."""

import pytest
import torch

from recbole_perpeft.nn.item_encoder import ItemEncoder

MODELS = {
    "PerPEFT": {},
    "GlobalPEFT": {"peft_type": "none"},
    "MoRec": {"adaptation": "adapter"},
    "IISAN": {},
}


@pytest.fixture
def counted(monkeypatch):
    """Groups whose catalogues are encoded."""
    encode, groups = ItemEncoder.encode_catalogue, []

    def count(self, group):
        groups.append(group)
        return encode(self, group)

    monkeypatch.setattr(ItemEncoder, "encode_catalogue", count)
    return groups


@pytest.mark.parametrize("name", MODELS)
def test_kept_vectors_are_read_instead_of_computed(prepare, counted, tmp_path, name):
    prepared = prepare(name, **MODELS[name])
    model = prepared.personalise(2).eval() if name == "PerPEFT" else prepared.model.eval()
    groups = [None, *range(model.n_groups)]
    expected = {group: model.catalogue(group) for group in groups}
    assert counted == groups
    file = tmp_path / "catalogues.safetensors"
    model.write_catalogues(file, 10**6)
    again = prepared.fresh_model(seed=3).eval()
    again.load_state_dict(model.state_dict())
    again.read_catalogues(file)
    for group in groups:
        assert torch.equal(again.catalogue(group, kept=False), expected[group])
        assert torch.equal(again.catalogue(group), expected[group])
    assert counted == groups


def test_other_weights_or_content_are_computed_again(prepare, counted, tmp_path):
    prepared = prepare("GlobalPEFT")
    model, file = prepared.model.eval(), tmp_path / "catalogues.safetensors"
    model.write_catalogues(file, 10**6)
    model.read_catalogues(file)
    for change in (
        lambda: model.item_encoder.id_embedding.weight.data.__setitem__((3, 0), 1.0),
        lambda: model.item_encoder.content_encoder.bank.parameters_of(None)[0].data.add_(1.0),
        lambda: model.item_encoder.content_encoder.row_of_item.__setitem__(2, 0),
        lambda: model._settings.update(peft_config={"lora_alpha": 1}),
    ):
        model.write_catalogues(file, 10**6)
        counted.clear()
        change()
        found = model.catalogue(None, kept=False)
        assert counted == [None]
        assert torch.equal(found, model.item_encoder.encode_catalogue(None))


def test_settings_that_say_where_things_are_change_nothing(prepare, tmp_path):
    one, other = prepare("GlobalPEFT"), prepare("GlobalPEFT", photo_memory=4096, show_progress=True, learning_rate=0.5)
    other.model.load_state_dict(one.model.state_dict())
    assert other.model.digest_of_vectors() == one.model.digest_of_vectors()
    assert prepare("GlobalPEFT", content_weight=0.7).fresh_model().digest_of_vectors() != (
        one.fresh_model().digest_of_vectors()
    )


def test_too_many_are_not_kept(prepare, tmp_path, caplog):
    model = prepare("GlobalPEFT").model.eval()
    file = tmp_path / "catalogues.safetensors"
    model.write_catalogues(file, 10**6)
    caplog.set_level("INFO")
    model.write_catalogues(file, 1000)
    assert not file.exists() and "more than keep_catalogues allows" in caplog.text
