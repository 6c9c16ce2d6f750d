"""IISAN, MoRec and PerPEFT with side networks: from data to scores."""

import pytest
import torch
from torch.nn import functional

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.nn.users.sasrec import left_pad
from recbole_perpeft.pretrained.dual import FoundationModel
from recbole_perpeft.pretrained.tower import Backbone
from recbole_perpeft.runs.run import run
from support.learning import check_that_a_run_learns

ADAPTATIONS = ["full", "adapter", "lora", "bitfit", "frozen"]
SIDE = {"peft_type": "iisan", "peft_config": {"n_blocks": 2}}


def naive_in_batch_loss(hidden, rows, vectors, counts):
    """The formula of the paper, one score at a time, in float64."""
    log_p = (counts / counts.sum()).log()
    terms = []
    for user, row in enumerate(rows):
        for slot in range(len(row) - 1):
            if not row[slot]:
                continue
            scores = [hidden[user, slot] @ vectors[row[slot + 1]] - log_p[row[slot + 1]]]
            own = set(row.tolist())
            for other in rows:
                for item in other.tolist():
                    if item and item not in own:
                        scores.append(hidden[user, slot] @ vectors[item] - log_p[item])
            terms.append(-functional.log_softmax(torch.stack(scores), 0)[0])
    return torch.stack(terms).mean()


def test_the_loss_of_a_batch_is_the_formula(prepare):
    prepared = prepare("IISAN", train_batch_size=6)
    model = prepared.model.double().eval()
    batch = next(iter(prepared.train_data))
    assert "neg_item_id_list" not in batch
    length = batch["item_length"]
    inputs, targets = (left_pad(batch[name], length) for name in ("item_id_list", "pos_item_id_list"))
    rows = torch.cat([inputs, targets[:, -1:]], dim=1)
    assert torch.equal(rows[:, 1:] * (inputs != 0), targets)
    # Every train item of a user, the first one included, in as many rows as it occurs in.
    counts = torch.zeros(model.n_items, dtype=torch.float64)
    for item in prepared.train_data.dataset.phase_history.items:
        counts[item] += 1
    with torch.no_grad():
        vectors = model.item_encoder(torch.arange(model.n_items), None)
        hidden = model.user_encoder(vectors[inputs], inputs)
        expected = naive_in_batch_loss(hidden, rows, vectors, counts.clamp(min=1))
        assert model.calculate_loss(batch).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("IISAN", {}), ("IISAN", {"user_encoder": "sasrec", "dropout_prob": 0.1, "loss_type": "bce"}), ("MoRec", {})],
)
def test_scores_do_not_depend_on_the_batch(prepare, name, settings):
    if name == "MoRec":
        settings = {"adaptation": "frozen"}
    prepared = prepare(name, **settings)
    model = prepared.model.eval()
    rows = next(iter(prepared.valid_data))[0]
    with torch.no_grad():
        scores = model.full_sort_predict(rows)
        for index in (0, 3, 50):
            length = rows["item_length"][index]
            item_seq = left_pad(rows["item_id_list"][index : index + 1], length.view(1))
            vectors = torch.cat([model.item_encoder(item.view(1), None) for item in item_seq[0]])
            user = model.user_encoder(vectors.unsqueeze(0), item_seq)[0, -1]
            expected = torch.cat([model.item_encoder(torch.tensor([i]), None) @ user for i in range(model.n_items)])
            torch.testing.assert_close(scores[index], expected, atol=1e-4, rtol=1e-4)


def test_an_item_without_ids_is_its_content(prepare):
    model = prepare("IISAN").model.eval()
    tokens = model.item_tokens_with_content[:5]
    dataset = prepare("IISAN").dataset
    ids = torch.tensor([dataset.token2id("item_id", token) for token in tokens])
    assert not any("id_embedding" in name for name, _ in model.named_parameters())
    torch.testing.assert_close(model.item_encoder.new_item_vectors(tokens, None), model.item_encoder(ids, None))


@pytest.mark.parametrize(
    ("name", "settings"),
    [("IISAN", {}), *(("MoRec", {"adaptation": way}) for way in ADAPTATIONS), ("PerPEFT", SIDE)],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_a_run_learns_and_its_checkpoint_gives_the_same_numbers(aspects_settings, name, settings):
    rates = {"learning_rate": 3e-3} if name == "PerPEFT" else {"learning_rate": 3e-3, "param_groups": "uniform"}
    check_that_a_run_learns(name, aspects_settings | settings | rates | {"epochs": 4, "topk": [10]})


def test_side_networks_are_personal(prepare):
    model = prepare("PerPEFT", **SIDE).personalise().eval()
    assert set(model.item_encoder.content_encoder.networks) == {"global", "0", "1", "2"}
    assert not torch.allclose(model.catalogue(0), model.catalogue(1), atol=1e-3)


def test_only_the_active_group_moves(prepare):
    prepared = prepare("PerPEFT", **SIDE)
    model = prepared.personalise().train()
    batch = next(iter(prepared.train_data))
    model.calculate_loss(batch).backward()
    active = str(int(batch["user_id"][0]) % 3)
    networks = model.item_encoder.content_encoder.networks
    moved = {name for name, network in networks.items() if any(p.grad is not None for p in network.parameters())}
    assert moved == {active}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("IISAN", {"n_blocks": 9}, "n_blocks: 9"),
        ("IISAN", {"text_blocks": [1, 7]}, "there is no block 7"),
        ("IISAN", {"text_encoder": None, "image_encoder": None}, "0 towers"),
        ("IISAN", {"towers": [{"field": "title"}]}, "does not describe a tower"),
        ("IISAN", {"towers": [{"field": "caption", "encoder": "aspects-clip"}], "modality": "intra"}, "caption"),
        ("IISAN", {"user_encoder": "gru"}, "user_encoder is .gru.: it must be one of"),
        ("IISAN", {"loss_type": "hinge"}, "loss_type is .hinge.: it must be one of bce, "),
        (
            "IISAN",
            {"loss_type": "bce", "id_embedding_reg": 1e-6},
            "id_embedding_reg: items of IISAN",
        ),
        ("IISAN", {"lr_side_text": 0}, "lr_side_text is 0: it must be"),
        (
            "MoRec",
            {"adaptation": "prompt"},
            "adaptation: 'prompt' is unknown.*; choose one of .*adapter, .*bitfit, .*frozen, full, .*iisan, .*lora",
        ),
        ("PerPEFT", {"peft_type": "iisan", "peft_config": {"r": 4}}, "peft_config: r means nothing"),
        ("PerPEFT", {"peft_type": "iisan", "peft_config": {"n_blocks": 5}}, "n_blocks: 5"),
    ],
)
def test_wrong_settings_name_the_key(aspects_settings, name, settings, message):
    with pytest.raises(PerPEFTError, match=message):
        run(name, config_dict=aspects_settings | settings)


@pytest.mark.parametrize(("name", "settings"), [("IISAN", {}), ("MoRec", {"adaptation": "frozen"}), ("PerPEFT", SIDE)])
def test_training_on_stored_states_loads_no_encoder(aspects_settings, monkeypatch, name, settings):
    settings = aspects_settings | settings | {"epochs": 1, "epochs_global": 1}
    run(name, config_dict=settings)

    def refuse(*_arguments, **_options):
        raise AssertionError("an encoder was loaded")

    monkeypatch.setattr(Backbone, "from_pretrained", refuse)
    monkeypatch.setattr(FoundationModel, "from_pretrained", refuse)
    assert run(name, config_dict=settings)["test_result"]


@pytest.fixture
def two_texts(aspects_settings, tmp_path, small_aspects):
    """Settings for items with a caption beside the title, of which no image is read (iisan.md section 9)."""
    folder = tmp_path / "data" / "aspects"
    folder.mkdir(parents=True)
    source = small_aspects / "aspects"
    (folder / "aspects.inter").write_bytes((source / "aspects.inter").read_bytes())
    header, *lines = (source / "aspects.item").read_text().splitlines()
    rows = [f"{line}\t{line.split(chr(9))[1]}" for line in lines]
    (folder / "aspects.item").write_text("\n".join([f"{header}\tcaption:token_seq", *rows]) + "\n")
    towers = [{"field": field, "encoder": "aspects-clip"} for field in ("title", "caption")]
    places = {"data_path": str(folder.parent), "cache_folder": str(tmp_path / "cache")}
    return aspects_settings | places | {"towers": towers}


@pytest.mark.parametrize(
    ("name", "settings"), [("IISAN", {}), ("MoRec", {"adaptation": "lora"}), ("MoRec", {"adaptation": "frozen"})]
)
def test_two_texts_are_two_towers(two_texts, name, settings):
    assert run(name, config_dict=two_texts | settings)["test_result"]


def test_no_encoder_trains_on_black_pictures(prepare):
    model = prepare("MoRec", adaptation="lora", towers=[{"field": "title", "encoder": "aspects-clip"}]).model
    content = model.item_encoder.content_encoder
    assert set(content.bank.backbones) == {"text"}
    assert "pixel_values" not in content.inputs(torch.arange(5))
