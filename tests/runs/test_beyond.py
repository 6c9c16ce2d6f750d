"""What a run tells of its test lists."""

import numpy as np
import pytest
import torch

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.history import history_of
from recbole_perpeft.runs.beyond import content_of, diversity_encoders, list_figures, result_of
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.run import create_dataset


@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_a_model_of_recbole_has_figures_of_the_untouched_encoder(prepare_recbole, tmp_path, model):
    prepared = prepare_recbole(model, diversity_encoder="aspects-clip")
    config, dataset, trainer = prepared.config, prepared.dataset, prepared.trainer(tmp_path)
    content = content_of(config, dataset)
    figures = list_figures(config, prepared.train_data._dataset, None, content)
    trainer.eval_collector.list_figures = figures
    trainer.evaluate(prepared.test_data, load_best_model=False)

    trained = history_of(create_dataset(config).build(), "valid").items
    assert figures._train_counts.tolist() == np.bincount(trained, minlength=dataset.item_num).tolist()
    vectors = content(torch.arange(dataset.item_num))
    assert vectors[1:].norm(dim=1).tolist() == pytest.approx([1] * (dataset.item_num - 1), abs=1e-5)
    found = result_of(figures, config)
    assert found["diversity_encoder"] == "aspects-clip" and "test_lists_by_group" not in found
    # Almost random lists: pairs of them differ as pairs of the catalogue do.
    cosines = vectors[1:] @ vectors[1:].T
    apart = 1 - cosines[~torch.eye(len(cosines)).bool()].mean()
    assert found["test_lists"]["diversity@5"] == pytest.approx(float(apart), abs=0.15)
    assert 0 < found["test_lists"]["unexpectedness@5"] <= 1


@pytest.mark.parametrize("mode", ["uni20", "full"])
def test_drawn_candidates_have_no_lists(toy_settings, mode):
    config = Config("Pop", config_dict=toy_settings | {"eval_args": {"mode": mode}})
    found = list_figures(config, create_dataset(config).build()[0])
    assert (found is None) == (mode != "full")
    assert found is not None or result_of(found, config) == {}


def test_encoders_of_diversity():
    both = diversity_encoders("minilm")
    assert (both.text_encoder, both.image_encoder, both.max_text_length) == ("minilm", "minilm", None)
    one = diversity_encoders({"text_encoder": "minilm", "max_text_length": 8})
    assert one.fields == ("title",) and one.max_text_length == 8
    with pytest.raises(PerPEFTError, match="diversity_encoder: 'encoder' is no setting of encoders"):
        diversity_encoders({"encoder": "minilm"})
    with pytest.raises(PerPEFTError, match="0 towers"):
        diversity_encoders({})
