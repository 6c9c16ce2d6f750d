"""The exported folder at work: what plain PyTorch, peft and pandas read of it is what the model says."""

import re
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from huggingface_hub.errors import HfHubHTTPError
from peft import PeftModel
from safetensors.torch import load_file

from recbole_perpeft.cli.main import main
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.pretrained.dual import locate_foundation
from recbole_perpeft.runs.run import run
from recbole_perpeft.use import parts
from recbole_perpeft.use.hub import push
from recbole_perpeft.use.parts import can_write_onnx
from recbole_perpeft.use.recommend import Recommender
from support.plain_peft import vectors_by_peft_alone

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def exported(small_aspects, tmp_path_factory):
    """A run, and its export in a folder beside the bundled foundation model."""
    folder = tmp_path_factory.mktemp("exported")
    settings = {
        "dataset": "aspects",
        "data_path": str(small_aspects),
        "cache_folder": str(small_aspects / "cache"),
        "run_folder": str(folder / "run"),
        "show_progress": False,
        "use_gpu": False,
        "epochs_global": 1,
        "epochs": 1,
        "n_groups": 2,
        "min_group_size": 1,
        "learning_rate": 0.01,
        "topk": [5, 10],
        "valid_metric": "NDCG@10",
    }
    run("PerPEFT", config_dict=settings)
    assert main(["export", f"--run={folder / 'run'}", f"--output={folder / 'model'}", "--license=mit"]) == 0
    return folder


@pytest.fixture(scope="module")
def recommender(exported):
    return Recommender.from_file(exported / "run")


@pytest.fixture(scope="module")
def snippets(exported):
    """What the lines of the card define, run in the folder by nothing of this package."""
    (exported / "model" / "aspects-clip").symlink_to(locate_foundation("aspects-clip"))
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(exported / "model")
        blocks = re.findall(r"```python\n(.*?)```", (exported / "model" / "README.md").read_text(), re.DOTALL)
        assert len(blocks) == 3 + can_write_onnx()
        for block in blocks:
            assert "recbole" not in block
            exec(compile(block, "README.md", "exec"), names)
        names["all_vectors"] = {group: names["vectors_of"](group) for group in ("global", "group-0", "group-1")}
    return SimpleNamespace(**names)


def test_item_vectors_and_ids_are_those_of_the_model(exported, recommender):
    items = pd.read_parquet(exported / "model" / "items.parquet")
    assert items["item_id"].tolist() == recommender.item_tokens[1 : recommender.n_known].tolist()
    assert items["row"].tolist() == list(range(1, recommender.n_known))
    for name, group in (("global", None), ("group-0", 0), ("group-1", 1)):
        vectors = load_file(exported / "model" / "vectors" / f"{name}.safetensors")["item_vectors"]
        torch.testing.assert_close(vectors, recommender.model.catalogue(group), atol=1e-5, rtol=0)


def test_lists_of_new_users_are_those_of_the_recommender(snippets, recommender):
    """The group of the card's lines, and scores and lists in it, for histories shorter and longer than the model's."""
    rng = np.random.default_rng(0)
    items = recommender.item_tokens[1 : recommender.n_known]
    histories = [rng.choice(items, size).tolist() for size in (1, 2, 3, 10, 70)]
    for history in histories:
        table = recommender.for_histories([history], k=len(items), exclude_seen=False)
        everybody = snippets.all_vectors["global"]
        distance = torch.cdist(snippets.user_vector(history, everybody), snippets.centroids)
        assert distance.argmin().item() == table["group"][0]
        vectors = snippets.all_vectors[f"group-{table['group'][0]}"]
        scores = (snippets.user_vector(history, vectors) @ vectors.T)[0].detach().numpy()
        np.testing.assert_allclose(scores[recommender.item_ids(table["item_id"])], table["score"], atol=1e-5)
    assert len(snippets.best) == 5 and set(snippets.best) <= set(items)


def test_a_content_part_is_made_of_what_plain_peft_sees(exported, snippets, recommender, small_aspects):
    assert isinstance(snippets.model, PeftModel)
    items = torch.arange(1, 9)
    tokens = recommender.item_tokens[1:9].tolist()
    content = vectors_by_peft_alone(exported / "model" / "group-1", tokens, small_aspects / "aspects")
    ids = load_file(exported / "model" / "id_vectors.safetensors")["id_vectors"]
    found = snippets.content_part(content, "group-1") + ids[items]
    torch.testing.assert_close(found, recommender.model.catalogue(1)[items], atol=1e-5, rtol=0)


def test_the_card_tells_what_was_trained(exported):
    text = (exported / "model" / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "mit" and head["library_name"] == "peft" and "base_model" not in head
    result = yaml.safe_load((exported / "run" / "result.json").read_text())["test_result"]
    assert all(f"| {name} | {value} |" in text for name, value in result.items())
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert settings["n_groups"] == 2 and settings["peft_type"] == "lora" and settings["seed"] == 2026
    assert "in 2 groups, 80 items" in text and "order TO" in text and "| torch | " in text
    for file in (exported / "model" / "README.md", *(exported / "model").rglob("adapter_config.json")):
        assert not re.search(r'["` ]/\w+/', file.read_text()), "no path of this machine"


class Hub:
    """Stands in for the hub."""

    def __init__(self, error=None):
        self.calls, self.error = [], error

    def create_repo(self, repository, **how):
        self.calls.append((repository, how))
        if self.error:
            raise self.error

    def upload_folder(self, **how):
        self.calls.append(how)
        return "https://hub/commit"


def test_the_hub_gets_all_but_who_the_users_are(exported, monkeypatch):
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    assert push(exported / "model", "shop/model") == "https://hub/commit"
    (repository, how), upload = hub.calls
    assert repository == upload["repo_id"] == "shop/model" and how == {"private": True, "exist_ok": True}
    assert upload["folder_path"] == exported / "model" and upload["ignore_patterns"] == ["users.parquet"]


def test_what_the_hub_refuses_is_told_in_a_sentence(exported, monkeypatch):
    refused = HfHubHTTPError("401\nno token", response=SimpleNamespace(headers={}, request=None))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Hub(refused))
    with pytest.raises(PerPEFTError, match="the hub does not take shop/model: 401 no token"):
        push(exported / "model", "shop/model")


def test_without_a_connection_the_folder_is_said_to_be_complete(exported, monkeypatch):
    """Errors of transport are those of the library that the hub is asked through."""
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Hub(type("ConnectError", (Exception,), {})("refused")))
    with pytest.raises(PerPEFTError, match="refused; .* is complete and can be uploaded later"):
        push(exported / "model", "shop/model")


def test_onnx_without_its_packages(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(parts, "ONNX_PACKAGES", ("no_package_of_this_name",))
    assert main(["export", "--run=somewhere", f"--output={tmp_path / 'out'}", "--onnx"]) == 2
    assert "pip install 'recbole-perpeft[export]'" in capsys.readouterr().err


@pytest.mark.skipif(not can_write_onnx(), reason="onnx and onnxscript are not installed")
def test_onnx_gives_the_same_user_vectors(exported, recommender, snippets):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = onnxruntime.InferenceSession(exported / "model" / "user_encoder.onnx")
    assert not (exported / "model" / "user_encoder.onnx.data").exists(), "one file"
    people = recommender.people_of_log(recommender.all_users())
    length = recommender.model.max_seq_length
    item_seq, lengths = people.histories.newest(people.rows, length)
    rows = np.stack([np.roll(row, length - n) for row, n in zip(item_seq, lengths, strict=True)])  # pads in front
    assert len(set(lengths.tolist())) > 3, "histories of several lengths"
    vectors = snippets.all_vectors["group-1"]
    expected = recommender.scorer.user_vectors(people.histories, people.rows, people.users, 1)
    for n in (1, 5, len(rows)):
        inputs = {"item_vectors": vectors[rows[:n]].numpy(), "item_rows": rows[:n]}
        found = torch.from_numpy(session.run(None, inputs)[0])
        torch.testing.assert_close(found, expected[:n], atol=1e-4, rtol=0)
    best, wanted = ((each @ vectors[1:].T).topk(20).indices for each in (found, expected))
    assert best.equal(wanted)
