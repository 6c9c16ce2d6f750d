"""Models of PerPEFT's authors give the same scores after they were brought here."""

import importlib.util
import json
import logging
import re
import sys
from pathlib import Path

import pytest
import torch

import recbole_perpeft
from recbole_perpeft.runs import run as quick_start
from support.reference_model import HEADS, LENGTH, WIDTH, Reference, write_numbers

ROOT = Path(recbole_perpeft.__path__[0]).parent
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def _import_script():
    spec = importlib.util.spec_from_file_location("import_reference", ROOT / "scripts" / "import_reference.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


script = _import_script()


@pytest.fixture
def reference(small_aspects):
    return lambda peft_type="lora", n_modules=1: Reference(small_aspects, peft_type, n_modules)


@pytest.fixture
def flags(aspects_settings, tmp_path):
    """Words of the command line."""
    kept = ("dataset", "data_path", "cache_folder", "use_gpu", "show_progress")
    settings = {key: aspects_settings[key] for key in kept} | {"foundation_model": "aspects-clip", "n_heads": HEADS}
    folder = tmp_path / "reference"
    paths = {"folder": folder, "output": tmp_path / "imported" / "best.pth", "item_ids": folder / "items.tsv"}

    def words(**changes):
        return [f"--{key}={value}" for key, value in (settings | paths | changes).items() if value is not None]

    return words


def _assert_same_scores(loaded, users, expected, tokens):
    """Compares the scores of some users of the test rows with those of the reference, [users, items]."""
    _, model, dataset, _, _, test_data = loaded
    rows = test_data.dataset.inter_feat
    ids = torch.from_numpy(dataset.token2id(dataset.uid_field, users))
    chosen = rows[(ids.unsqueeze(1) == rows["user_id"]).nonzero()[:, 1]]
    assert torch.equal(chosen["user_id"], ids)
    with torch.no_grad():
        scores = model.full_sort_predict(chosen)[:, dataset.token2id(dataset.iid_field, tokens)]
    torch.testing.assert_close(scores.double(), expected, atol=1e-5, rtol=0)


def _some_users(model):
    """Users with the shortest and the longest histories, and some between."""
    by_length = sorted(model.histories, key=lambda user: len(model.histories[user]))
    users = by_length[:3] + by_length[70:74] + by_length[-3:]
    assert len(model.histories[users[0]]) - 1 < LENGTH < len(model.histories[users[-1]]) - 1
    return users


@pytest.mark.parametrize(("peft_type", "safe"), [("lora", True), ("ia3", True), ("lora", False)])
def test_global_model_scores_the_same(reference, flags, tmp_path, capsys, peft_type, safe):
    original = reference(peft_type)
    original.save(tmp_path / "reference", ["best"], safe)
    assert script.main(flags()) == 0, capsys.readouterr().err
    assert capsys.readouterr().out == f"GlobalPEFT on aspects: {tmp_path}/imported/best.pth\n"
    loaded = quick_start.load(tmp_path / "imported" / "best.pth")
    config, model = loaded[:2]
    assert (config["model"], config["peft_type"], model.n_groups) == ("GlobalPEFT", peft_type, 0)
    users = _some_users(original)
    _assert_same_scores(loaded, users, original.scores(users, 0), original.tokens)


# Numbers in names that sort differently as text.
@pytest.mark.parametrize("names", [["2", "10", "global"], ["best_2", "best_10"]])
def test_personalised_model_scores_the_same(reference, flags, tmp_path, capsys, caplog, names):
    original = reference("lora", len(names))
    folder = original.save(tmp_path / "reference", names)
    groups = {user: (10, 2)[place % 3 == 0] for place, user in enumerate(original.users)}
    groups_file = write_numbers(folder / "groups.tsv", groups)
    with caplog.at_level(logging.WARNING):
        assert script.main(flags(user_groups=groups_file)) == 0, capsys.readouterr().err
    has_global = "global" in names
    assert ("new users cannot be placed exactly" in caplog.text) != has_global
    loaded = quick_start.load(tmp_path / "imported" / "best.pth")
    model = loaded[1]
    assert (loaded[0]["model"], model.n_groups) == ("PerPEFT", 2)
    users = _some_users(original)
    assert {groups[user] for user in users} == {2, 10}
    by_group = torch.stack([original.scores(users, module) for module in (0, 1)])
    own = by_group[[(2, 10).index(groups[user]) for user in users], range(len(users))]
    assert (by_group[0] - by_group[1]).abs().max() > 0.1
    _assert_same_scores(loaded, users, own, original.tokens)
    if not has_global:
        original.average_modules()
    _assert_centroids(model, original, groups)


def _assert_centroids(model, original, groups):
    """The last module is the global one; histories are what is left for training without the last two items."""
    vectors = original.item_vectors(-1)
    for place, number in enumerate((2, 10)):
        histories = [original.histories[user][:-2] for user in original.users if groups[user] == number]
        centroid = original.user_vectors(histories, vectors).mean(0)
        torch.testing.assert_close(model.group_centroids[place].double(), centroid, atol=1e-5, rtol=0)


def test_item_tokens_can_be_the_rows(reference, flags, tmp_path, small_aspects, monkeypatch, capsys):
    """A data set whose item tokens are numbers needs no file of rows."""
    original = reference()
    original.save(tmp_path / "reference", ["0"])
    data = tmp_path / "data" / "aspects"
    (data / "images").mkdir(parents=True)
    for image in (small_aspects / "aspects" / "images").iterdir():
        (data / "images" / f"{original.index[image.stem]}{image.suffix}").symlink_to(image)
    for name, column in (("aspects.item", 0), ("aspects.inter", 1)):
        lines = (small_aspects / "aspects" / name).read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t") for line in lines]
        for row in rows[1:]:
            row[column] = str(original.index[row[column]])
        (data / name).write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    changes = {"data_path": data.parent, "item_ids": None, "cache_folder": tmp_path / "cache"}
    assert script.main(flags(**changes)) == 0, capsys.readouterr().err
    loaded = quick_start.load(tmp_path / "imported" / "best.pth")
    users = _some_users(original)
    tokens = [str(original.index[token]) for token in original.tokens]
    _assert_same_scores(loaded, users, original.scores(users, 0), tokens)


def test_help(capsys):
    assert script.main(["--help"]) == 0
    assert "--user_groups=FILE" in capsys.readouterr().out


@pytest.fixture
def fails(reference, flags, tmp_path, capsys):
    """Saves a model with two groups, lets `spoil(folder)` break it, and gives the only line of the message."""
    original = reference("lora", 2)
    folder = original.save(tmp_path / "reference", ["0", "1"])
    groups_file = write_numbers(folder / "groups.tsv", {user: place % 2 for place, user in enumerate(original.users)})

    def run(spoil, **changes):
        spoil(folder)
        capsys.readouterr()
        assert script.main(flags(**{"user_groups": groups_file, **changes})) == 2
        assert not (tmp_path / "imported").exists()
        output = re.sub(r".*Loading weights.*|^\s+$", "", capsys.readouterr().err, flags=re.MULTILINE).strip()
        assert "\n" not in output
        return output.removeprefix("error: ")

    return run


def _change(name, change):
    """Saves another state dict in place of one; `change` gets it and may return a new one."""

    def spoil(folder):
        tensors = torch.load(folder / name, weights_only=True)
        torch.save(change(tensors) or tensors, folder / name)

    return spoil


def _lines(name, change):
    def spoil(folder):
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        (folder / name).write_text("\n".join(change(lines)) + "\n", encoding="utf-8")

    return spoil


def _fewer_items(tensors):
    tensors["item_emb.weight"] = tensors["item_emb.weight"][:-3]


def _wide_kernel(tensors):
    tensors["forward_layers.1.conv2.weight"] = torch.zeros(WIDTH, WIDTH, 3)


def _no_last_bias(tensors):
    del tensors["last_layernorm.bias"]


def _other_scale(folder):
    path = folder / ADAPTER / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 99}))


SASREC, ADAPTER = "sasrec_best.pth", "clip_encoder_1"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / SASREC).unlink(), r"reference must hold one sasrec_\*.pth, it holds none"),
        (lambda f: (f / SASREC).rename(f / "projector_1.pth"), "it holds none"),
        (lambda f: (f / "sasrec_a.pth").write_bytes(b""), r"it holds sasrec_a.pth, sasrec_best.pth"),
        (lambda f: (f / "projector_1.pth").unlink(), r"reference/projector_1.pth missing"),
        (lambda f: (f / ADAPTER).rename(f / "clip_encoder_7"), r"clip_encoder_1, .*/projector_7.pth missing"),
        (lambda f: (f / ADAPTER / "adapter_config.json").unlink(), r"clip_encoder_1/adapter_config.json is missing"),
        (lambda f: (f / ADAPTER / "adapter_model.safetensors").unlink(), r"clip_encoder_1 has no adapter_model"),
        (lambda f: (f / SASREC).write_bytes(b"PK no"), r"sasrec_best.pth is damaged"),
        (lambda f: torch.save({"code": print}, f / SASREC), r"sasrec_best.pth is damaged, or holds more than tensors"),
        (lambda f: torch.save([1], f / SASREC), r"sasrec_best.pth is no state dict"),
        (_change(SASREC, _fewer_items), r"sasrec_best.pth has 77 items, the data set aspects has 80"),
        (_change(SASREC, lambda t: {**t, "extra.weight": t["item_emb.weight"]}), r"unknown tensors: extra.weight"),
        (_change(SASREC, lambda t: {"item_emb.weight": t["item_emb.weight"]}), "has no matrix pos_emb.weight"),
        (_change(SASREC, _no_last_bias), "lacks the tensors last_layernorm.bias"),
        (_other_scale, r"clip_encoder_1 was made with lora_alpha = 99, not 12"),
        (_change(SASREC, _wide_kernel), r"conv2.weight has the shape \(16, 16, 3\), the model needs \(16, 16\)"),
        (
            _change("projector_1.pth", lambda t: {**t, "projector.0.weight": torch.zeros(32, 90)}),
            r"projector_1.pth: projector.0.weight has the shape \(32, 90\), the model needs \(32, 96\)",
        ),
        (_lines("groups.tsv", lambda lines: lines[2:]), r"groups.tsv gives no group for 2 users: "),
        (_lines("groups.tsv", lambda lines: [lines[0][:-1] + "5", *lines[1:]]), "names the groups 5, .* are 0, 1"),
        (_lines("groups.tsv", lambda lines: [line[:-1] + "1" for line in lines]), "no user of aspects to the groups"),
        (_lines("groups.tsv", lambda lines: ["user\tgroup", *lines]), r"groups.tsv, line 1: 'user\\tgroup' is not"),
        (_lines("groups.tsv", lambda lines: [*lines, lines[0]]), r"groups.tsv, line 151: '\w+' is there twice"),
        (_lines("items.tsv", lambda lines: lines[1:]), r"items.tsv gives no row of item_emb for 1 items: "),
        (_lines("items.tsv", lambda lines: [*lines[:-1], lines[-1] + "0"]), r"between 1 and 80, not so for \w+"),
        (_lines("items.tsv", lambda lines: [*lines[:-1], lines[-1][:-2] + "79"]), "have the same row: 79"),
    ],
)
def test_wrong_files_are_named(fails, spoil, message):
    text = fails(spoil)
    assert re.search(message, text), text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user_groups": None}, r"reference holds 2 module\(s\) and needs --user_groups"),
        ({"folder": None}, "--folder is missing"),
        ({"output": None}, "--output is missing"),
        ({"output": "."}, "--output=. is a folder"),
        ({"folder": "nowhere"}, "there is no folder nowhere"),
        ({"user_groups": "nowhere.tsv"}, "cannot read nowhere.tsv"),
        ({"hidden_size": 32}, r"leave out --hidden_size: it follows from the files \(16\)"),
        ({"n_heads": 3}, "n_heads is 3: it must divide hidden_size, 16"),
        ({"item_ids": None}, "gives no row of item_emb for 80 items: .*; give the rows with --item_ids"),
        ({"n_haeds": 2}, "did you mean 'n_heads'"),
    ],
)
def test_wrong_flags_are_named(fails, changes, message):
    text = fails(lambda folder: None, **changes)
    assert re.search(message, text), text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b"], "projector_a.pth has no number of a group in its name"),
        (["x_1", "y_1"], "projector_x_1.pth and .*projector_y_1.pth have the same number, 1"),
    ],
)
def test_groups_need_numbers(flags, tmp_path, capsys, names, message):
    folder = tmp_path / "reference"
    for name in names:
        (folder / f"clip_encoder_{name}").mkdir(parents=True)
        (folder / f"projector_{name}.pth").touch()
    (folder / "sasrec_best.pth").touch()
    assert script.main(flags()) == 2
    assert re.search(message, capsys.readouterr().err)
