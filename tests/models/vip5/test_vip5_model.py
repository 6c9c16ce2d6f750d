"""VIP5 from data to scores and back from a checkpoint."""

import json

import numpy as np
import pytest
import torch
import yaml

from recbole_perpeft.cli.main import main
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.dataset import history_of
from recbole_perpeft.models.vip5.names import successor_share
from recbole_perpeft.models.vip5.t5 import TinyBackboneSettings, tiny_backbone
from recbole_perpeft.models.vip5.trainer import VIP5Trainer
from recbole_perpeft.runs.run import get_trainer, load, resume, run
from recbole_perpeft.use.explain import explain

SMALL = {
    "tiny_width": 16,
    "tiny_inner_width": 32,
    "tiny_heads": 2,
    "tiny_layers": 1,
    "tiny_dropout": 0.0,
    "n_candidates": 4,
    "learning_rate": 5e-3,
    "max_target_tokens": 8,
    "prompts_per_user": 1,
    "task_weights": {"sequential": 1.0, "direct": 1.0, "explanation": 1.0},
}


def test_a_run_is_loaded_resumed_and_explained(aspects_settings, tmp_path, capsys):
    settings = aspects_settings | SMALL
    whole = run("VIP5", "aspects", None, settings | {"epochs": 2, "run_folder": str(tmp_path / "whole")})
    part = settings | {"epochs": 2, "run_folder": str(tmp_path / "part")}

    class StopError(Exception):
        pass

    # Stop after the first epoch as a killed process would.
    original = VIP5Trainer._train_epoch

    def stopping(self, train_data, epoch_idx, *arguments, **named):
        if epoch_idx == 1:
            raise StopError
        return original(self, train_data, epoch_idx, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VIP5Trainer, "_train_epoch", stopping)
        with pytest.raises(StopError):
            run("VIP5", "aspects", None, part)
    resumed = resume(tmp_path / "part")
    assert resumed["test_result"] == whole["test_result"]
    assert resumed["best_valid_score"] == whole["best_valid_score"]

    config, model, _, _, _, test_data = load(tmp_path / "whole")
    config["checkpoint_dir"] = str(tmp_path)
    assert dict(get_trainer(config)(config, model).evaluate(test_data, load_best_model=False)) == whole["test_result"]

    output = tmp_path / "said.tsv"
    words = [f"--model_file={tmp_path / 'whole'}", "--task=text", f"--output={output}", "--beams=2"]
    assert main(["explain", *words]) == 0
    lines = output.read_text().splitlines()
    assert lines[0].split("\t") == ["user_id", "item_id", "feature", "reference", "generated"]
    printed = capsys.readouterr().err
    assert "BLEU-4" in printed and "named" in printed and "chance" in printed
    report = explain(tmp_path / "whole", "C-12", show_progress=False)
    assert len(report.rows) == len(lines) - 1
    assert set(report.scores) == {"BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L", "named", "chance"}
    with pytest.raises(PerPEFTError, match="'A-3' is no template of explanations; choose of C-1"):
        explain(tmp_path / "whole", "A-3", show_progress=False)
    with pytest.raises(PerPEFTError, match="other id_order|names items differently"):
        load(tmp_path / "whole", {"id_seed": 9})
    with pytest.raises(PerPEFTError, match="other images"):
        load(tmp_path / "whole", {"n_visual_tokens": 0, "id_order": "random"})


def test_explaining_needs_a_vip5_with_explanations(aspects_settings, tmp_path, capsys):
    settings = aspects_settings | SMALL | {"epochs": 1, "task_weights": {"sequential": 1.0}}
    run("VIP5", "aspects", None, settings | {"run_folder": str(tmp_path / "plain")})
    assert main(["explain", f"--model_file={tmp_path / 'plain'}"]) == 2
    assert "trained without explanations" in capsys.readouterr().err
    run("SASRec", "aspects", None, aspects_settings | {"epochs": 1, "run_folder": str(tmp_path / "ids")})
    assert main(["explain", f"--model_file={tmp_path / 'ids'}"]) == 2
    assert "checkpoint of SASRec" in capsys.readouterr().err


def test_checkpoints_hold_what_is_trained_alone(prepare_vip5):
    model = prepare_vip5().model
    names = set(model.state_dict())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained <= names
    assert not any("writer" in name or "sampler" in name or "features" in name or "trie" in name for name in names)


def test_a_frozen_backbone_stays_out_of_checkpoints(prepare_vip5, tmp_path):
    def saved_backbone(name, seed):
        torch.manual_seed(seed)
        model, tokenizer = tiny_backbone(["here is the history of"], TinyBackboneSettings(16, 32, 2, 1))
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return {"backbone": str(tmp_path / name), "freeze_backbone": True, "task_weights": {"sequential": 1.0}}

    settings = saved_backbone("t5", 0)
    prepared = prepare_vip5(**settings)
    model, batch = prepared.model.eval(), next(iter(prepared.valid_data))[0][:4]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("adapter" in name for name in trained) and not any("shared" in name for name in trained)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        scores = model.full_sort_predict(batch)
    state = model.state_dict()
    assert set(state) == trained | {"item_ranks", "_extra_state"}
    again = prepare_vip5(**settings).fresh_model(seed=7).eval()
    again.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(again.full_sort_predict(batch), scores)
    with pytest.raises(PerPEFTError, match="other backbone"):
        prepare_vip5(**saved_backbone("other", 1)).model.load_state_dict(state)


@pytest.mark.parametrize("change", [{"n_visual_tokens": 0}, {"id_order": "content"}, {"id_order": "collab"}])
@pytest.mark.parametrize("id_scheme", ["code", "digits"])
def test_every_task_has_a_loss_and_gradients(prepare_vip5, change, id_scheme):
    prepared = prepare_vip5(id_scheme=id_scheme, user_scheme=id_scheme, **change)
    model = prepared.model.train()
    batch = next(iter(prepared.train_data))
    for name in ("A-1", "A-7", "B-3", "B-5", "C-3", "C-7", "C-11"):
        model.sampler.draw_template = lambda name=name: model.templates[name]
        loss = model.calculate_loss(batch)
        loss.backward()
        assert torch.isfinite(loss), name
    without = [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]
    assert without == []


@pytest.mark.parametrize("name", ["A-1", "B-5", "C-3"])
def test_losses_in_bfloat16_are_close(prepare_vip5, name):
    prepared = prepare_vip5()
    model, batch = prepared.model.train(), next(iter(prepared.train_data))
    model.sampler.draw_template = lambda: model.templates[name]
    losses = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(model.calculate_loss(batch))
        losses[-1].backward()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.02)


def test_names_do_not_follow_the_log(prepare_vip5):
    """The number of the held-out item is no neighbour of the history's numbers, unless the leaking order is chosen."""

    def hit_rate(**settings):
        prepared = prepare_vip5(task_weights={"sequential": 1.0}, **settings)
        ranks = np.concatenate([[-1], prepared.model.item_ranks.numpy()])
        parts = [loader.dataset for loader in (prepared.train_data, prepared.valid_data, prepared.test_data)]
        rows = parts[2].inter_feat
        return successor_share(ranks, history_of(parts, "test"), rows["user_id"].numpy(), rows["item_id"].numpy())

    assert hit_rate() < 0.04  # chance: 1 / 80
    assert hit_rate(id_order="appearance") > 0.05


def test_atomic_names_start_from_images(prepare_vip5):
    def likeness(**settings):
        """Correlation between the likenesses of names and of images."""
        model = prepare_vip5(task_weights={"sequential": 1.0}, id_scheme="atomic", **settings).model
        network = model.network
        rows = model.writer.item_names[1:, 0] - network.backbone.n_words
        names, images = network.new_tokens.weight[rows].detach(), network.visual.features[1:].float()
        left, values, _ = torch.linalg.svd(images - images.mean(dim=0), full_matrices=False)
        images = left[:, :16]
        return float(torch.corrcoef(torch.stack([(names @ names.T).flatten(), (images @ images.T).flatten()]))[0, 1])

    assert likeness(name_init="content") > 0.99
    assert abs(likeness(name_init="random")) < 0.3


def test_the_leaking_order_warns(prepare_vip5, caplog):
    prepare_vip5(id_order="appearance", task_weights={"sequential": 1.0})
    assert "results mean nothing" in caplog.text


def test_features_come_from_a_file_too(prepare_vip5, small_aspects, tmp_path):
    folder = small_aspects / "aspects"
    tokens = [line.split("\t")[0] for line in (folder / "aspects.item").read_text().splitlines()[1:]]
    vectors = np.random.default_rng(0).standard_normal((len(tokens), 7), dtype=np.float32)
    try:
        np.save(folder / "aspects.features.npy", vectors[:-3])
        (folder / "aspects.features.txt").write_text("\n".join(tokens[:-3]) + "\n")
        model = prepare_vip5(image_features="aspects.features.npy").model
        visual = model.network.visual
        assert visual.features.shape[1] == 7
        assert (~visual.has_image[1:]).sum() == 3 and visual.stand_in is not None
        with torch.no_grad():
            visual.stand_in.fill_(5.0)
            missing = (~visual.has_image).nonzero()[1:].squeeze(1)
            assert (visual(missing) == 5.0).all()
        state = model.state_dict()
        np.save(folder / "aspects.features.npy", vectors[:-3, :5])
        with pytest.raises(PerPEFTError, match="of width 7"):
            prepare_vip5(image_features="aspects.features.npy").model.load_state_dict(state)
        (folder / "aspects.features.txt").write_text("\n".join([*tokens[:-4], tokens[1]]) + "\n")
        with pytest.raises(PerPEFTError, match=f"names '{tokens[1]}' twice, in line 2 and line {len(tokens) - 3}"):
            prepare_vip5(image_features="aspects.features.npy")
        (folder / "aspects.features.txt").write_text("\n".join(tokens[:-3]) + "\n")
        np.save(folder / "aspects.features.npy", vectors)
        with pytest.raises(PerPEFTError, match="one row of floats an item"):
            prepare_vip5(image_features="aspects.features.npy")
        vectors[2] = np.nan
        np.save(folder / "aspects.features.npy", vectors[:-3])
        with pytest.raises(PerPEFTError, match="row 2 of .* is not finite"):
            prepare_vip5(image_features="aspects.features.npy")
    finally:
        for suffix in ("npy", "txt"):
            (folder / f"aspects.features.{suffix}").unlink()
    with pytest.raises(PerPEFTError, match="is missing; write vectors"):
        prepare_vip5(image_features="aspects.features.npy")


def test_own_templates(prepare_vip5, tmp_path):
    path = tmp_path / "mine.yaml"
    mine = {"sequential": [{"name": "mine", "input": "{history} next", "target": "{item}"}]}
    path.write_text(yaml.safe_dump(mine))
    settings = {"prompts": str(path), "eval_prompt": "mine"}
    model = prepare_vip5(task_weights={"sequential": 1.0}, **settings).model
    assert list(model.templates) == ["mine"]
    with pytest.raises(PerPEFTError, match="no template of the group direct is trained"):
        prepare_vip5(task_weights={"sequential": 1.0, "direct": 1.0}, **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_input_tokens": 12}, "max_input_tokens: the template"),
        ({"n_visual_tokens": -1}, "n_visual_tokens is -1"),
        ({"image_encoder": None}, "there are no images"),
        ({"id_order": "content", "n_visual_tokens": 0}, "orders items by their images"),
        ({"backbone": "/nowhere/t5"}, "the folder /nowhere/t5 does not exist"),
        ({"freeze_backbone": True}, "random weights"),
        ({"warmup_ratio": 1.5}, "warmup_ratio is 1.5"),
        ({"tiny_heads": 0}, "tiny_heads is 0: it must be a whole number, at least 1"),
        ({"tiny_heads": 17}, "tiny_heads is 17: it must be at most tiny_width, 16"),
        ({"tiny_dropout": 1}, "tiny_dropout is 1: it must be"),
    ],
)
def test_impossible_settings_are_refused(aspects_settings, change, message):
    with pytest.raises(PerPEFTError, match=message):
        run("VIP5", "aspects", None, aspects_settings | SMALL | change, saved=False)


def test_explanations_of_unknown_items_are_refused(prepare_vip5, small_aspects):
    path = small_aspects / "aspects" / "aspects.explanations.jsonl"
    original = path.read_text()
    first = json.loads(original.splitlines()[0])
    try:
        path.write_text(original + json.dumps(first | {"item_id": "NOBODY"}) + "\n")
        with pytest.raises(PerPEFTError, match="the item 'NOBODY', which has no interactions"):
            prepare_vip5()
        path.unlink()
        with pytest.raises(PerPEFTError, match="is missing; write it, or set the task weight"):
            prepare_vip5()
        prepare_vip5(task_weights={"sequential": 1.0})
    finally:
        path.write_text(original)
