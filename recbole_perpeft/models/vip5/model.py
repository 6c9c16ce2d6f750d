"""VIP5 as a RecBole model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import settings_from
from recbole_perpeft.data.dataset import HistoryIndex
from recbole_perpeft.data.explanations import SUFFIX, are_interactions, read_explanations
from recbole_perpeft.data.sampler import Draws
from recbole_perpeft.models.vip5.names import (
    AppearanceDataset,
    ItemTokenSettings,
    Scheme,
    TokenNames,
    content_vectors,
    item_ranks,
    mean_vectors,
    random_ranks,
    token_names,
)
from recbole_perpeft.models.vip5.network import RANDOM, Encoded, NameVectors, NetworkSettings, VIP5Network
from recbole_perpeft.models.vip5.prompts import PromptSettings, PromptWriter, Sample, template_words
from recbole_perpeft.models.vip5.ranking import CandidateLists, RankingSettings, RankingTemplates, answer_scores
from recbole_perpeft.models.vip5.t5 import BackboneSettings, T5Backbone, TinyBackboneSettings
from recbole_perpeft.models.vip5.tasks import TaskSampler, TaskSettings
from recbole_perpeft.models.vip5.templates import Template, read_templates
from recbole_perpeft.models.vip5.trainer import VIP5Trainer
from recbole_perpeft.models.vip5.trie import ItemTrie
from recbole_perpeft.models.vip5.visual import ItemInputs, VisualSettings, VisualTokens, load_item_inputs
from recbole_perpeft.nn.adapt.bottleneck import T5AdapterSettings
from recbole_perpeft.nn.users.sasrec import left_pad


class VIP5(SequentialRecommender):
    """VIP5 (Geng et al., Findings of EMNLP 2023, arXiv 2305.14302).

    A T5 with adapters reads prompts, in which items are names followed by visual tokens, and answers with the name of
    an item, with yes or no, or with an explanation. The score of an item is its log-probability under the model.

    Args:
        config: RecBole configuration with the keys of the settings classes beside this module.
        dataset: The train part of the data set.

    Attributes:
        network: What is trained.
        writer: Writes prompts.
        templates: Templates by name.
        explanations: The side file; empty where no group of tasks needs it.
        item_ranks: Ranks of which names are made, int64 [n_items - 1].
    """

    input_type = InputType.POINTWISE
    dataset_class = AppearanceDataset
    trainer_class = VIP5Trainer
    settings_classes = (
        BackboneSettings,
        TinyBackboneSettings,
        T5AdapterSettings,
        VisualSettings,
        ItemTokenSettings,
        PromptSettings,
        TaskSettings,
        NetworkSettings,
        RankingSettings,
    )

    @staticmethod
    def train_draws(config) -> Draws:
        """Nothing: questions and lists of candidates draw their own."""
        return Draws()

    def __init__(self, config, dataset) -> None:
        super().__init__(config, dataset)
        self.POS_ITEM_SEQ = "pos_" + self.ITEM_SEQ
        self.ranking = settings_from(config, RankingSettings)
        tasks = settings_from(config, TaskSettings)
        self.templates = read_templates(Path(self.ranking.prompts) if self.ranking.prompts else None)
        self.ranking_templates = RankingTemplates.choose(self.templates, self.ranking, tasks.tasks)
        n_listed = self.ranking_templates.check_sampling(config)
        used = [one for one in self.templates.values() if one.task in tasks.tasks]
        user_tokens, item_tokens = (dataset.field2id_token[field] for field in (self.USER_ID, self.ITEM_ID))
        self.explanations = pd.DataFrame()
        if "explanation" in tasks.tasks:
            path = config.dataset_folder / f"{config['dataset']}.{SUFFIX}"
            self.explanations = read_explanations(path, *map(_ids, (user_tokens, item_tokens)))
        explained = self._explained_in_train(dataset)
        inputs = load_item_inputs(
            config, item_tokens, settings_from(config, VisualSettings), any("title" in one.slots for one in used)
        )
        backbone = T5Backbone.load(
            settings_from(config, BackboneSettings),
            settings_from(config, T5AdapterSettings),
            settings_from(config, TinyBackboneSettings),
            self._texts(inputs, explained[2]),
        )
        self._build(config, dataset, backbone, inputs, user_tokens, item_tokens)
        ranking = [self.ranking_templates.catalogue, self.ranking_templates.candidates]
        self.writer.check([*used, *ranking], max(tasks.n_candidates, n_listed))
        trained = [one for one in used if not one.held_out]
        self.sampler = TaskSampler(trained, dataset.phase_history, self.n_items, explained, tasks)

    def _build(self, config, dataset, backbone: T5Backbone, inputs: ItemInputs, user_tokens, item_tokens) -> None:
        naming = settings_from(config, ItemTokenSettings)
        ranks = item_ranks(naming, item_tokens[1:], inputs.vectors, dataset)
        self.register_buffer("item_ranks", torch.from_numpy(ranks))
        self.candidate_lists = CandidateLists(item_tokens[1:], naming.id_seed)
        item_names = _names(naming.id_scheme, ranks, backbone)
        user_ranks = random_ranks(user_tokens, naming.id_seed)
        user_names = _names(naming.user_scheme, user_ranks, backbone)
        visual = None
        if inputs.features is not None and inputs.has_image is not None:
            tokens = settings_from(config, VisualSettings)
            visual = VisualTokens(inputs.features, inputs.has_image, backbone.width, tokens)
        n_visual = 0 if visual is None else visual.n_tokens
        limits = settings_from(config, PromptSettings)
        self.writer = PromptWriter(
            *(backbone.tokenizer, backbone.n_words, item_names, user_names),
            *(n_visual, inputs.titles, self.explanations, limits),
        )
        words = None if item_names.words is None else torch.from_numpy(item_names.words)
        trie = ItemTrie(item_names.names, item_names.n_tokens)
        self.ranking.warn_of_cost(trie)
        settings = settings_from(config, NetworkSettings)
        starts = RANDOM
        if naming.name_init == "content" and visual is not None:
            starts = _starts(naming, inputs.vectors(), backbone.width, ranks, user_ranks, dataset.phase_history)
        self.network = VIP5Network(backbone, visual, trie, words, self.writer.n_new, settings, starts)
        self._image_fingerprint = inputs.fingerprint

    def _explained_in_train(self, dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Users, items and rows of the explanations of train interactions."""
        if self.explanations.empty:
            nothing = np.empty(0, dtype=np.int64)
            return nothing, nothing, nothing
        rows = np.flatnonzero(are_interactions(self.explanations, dataset.phase_history))
        return (*(self.explanations[name].to_numpy()[rows] for name in ("user_id", "item_id")), rows)

    def _texts(self, inputs: ItemInputs, train_rows: np.ndarray) -> list[str]:
        """Texts that a tokenizer of our own has to know; none of them is held out."""
        columns = [name for name in ("feature", "headline", "explanation") if name in self.explanations]
        texts = [text for name in columns for text in self.explanations[name].iloc[train_rows].unique()]
        return [*template_words(self.templates), *inputs.titles, *texts]

    def get_extra_state(self) -> dict[str, str]:
        """What a state dict does not hold: frozen weights, vocabulary, and where features of images come from."""
        return {"backbone": self.network.backbone.fingerprint, "images": self._image_fingerprint}

    def set_extra_state(self, state: dict[str, str]) -> None:
        """Compares these with those of a state dict.

        Raises:
            PerPEFTError: The state dict belongs to another backbone, vocabulary or encoder of images.
        """
        current = self.get_extra_state()
        # Version 0.1.0 did not know the configuration, and knew a file of features by its name and width.
        before = {
            "backbone": current["backbone"].partition(".")[0],
            "images": current["images"].rpartition(", ")[0],
        }
        for name, own in current.items():
            if state[name] not in (own, before[name]):
                raise PerPEFTError(
                    f"the checkpoint was trained with other {name} ({state[name]}) than those loaded ({own}); give "
                    "the same backbone, prompts, texts and images"
                )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments) -> None:
        ranks = state_dict.get(f"{prefix}item_ranks")
        if ranks is not None and not torch.equal(ranks.cpu(), self.item_ranks.cpu()):
            raise PerPEFTError("the checkpoint names items differently; give the same id_order, id_seed and data")
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def calculate_loss(self, interaction) -> Tensor:
        """Loss of one task for the users of a batch.

        Args:
            interaction: Fields `user_id` [B], `item_id_list` and `pos_item_id_list` [B, L], right-padded, and
                `item_length` [B].

        Returns:
            Scalar loss.
        """
        template = self.sampler.draw_template()
        fields = (self.USER_ID, self.ITEM_SEQ, self.POS_ITEM_SEQ, self.ITEM_SEQ_LEN)
        sample = self.sampler.draw(template, *(interaction[field] for field in fields))
        prompt = self.writer.write(template, sample)
        if template.answers == "item":
            return self.network.item_loss(prompt, sample.items)
        return self.network.words_loss(prompt, self.writer.target_words(template, sample))

    def full_sort_predict(self, interaction) -> Tensor:
        """Log-probability of every item after the history of each row.

        Args:
            interaction: RecBole's evaluation rows: `user_id`, `item_id_list` [B, L], `item_length`.

        Returns:
            [B, n_items]
        """
        fields = (self.USER_ID, self.ITEM_SEQ, self.ITEM_SEQ_LEN)
        template = self.ranking_templates.catalogue
        return self._catalogue_scores(template, *(interaction[field] for field in fields))

    @property
    def names_users(self) -> bool:
        """Whether the prompt that ranks names the user, so that nobody else can be served."""
        return "user" in self.ranking_templates.catalogue.slots

    def _catalogue_scores(self, template: Template, users: Tensor, item_seq: Tensor, length: Tensor) -> Tensor:
        sample = Sample(users, users, history=left_pad(item_seq, length))
        return self._in_parts(
            template, sample, lambda encoded, _: self.ranking.catalogue_scores(self.network, encoded)
        )

    def _in_parts(self, template: Template, sample: Sample, score: Callable[[Encoded, Sample], Tensor]) -> Tensor:
        """Scores of prompts, `score_batch_size` at once."""
        parts = sample.split(self.ranking.score_batch_size)
        return torch.cat([score(self.network.encode(self.writer.write(template, part)), part) for part in parts])

    def predict(self, interaction) -> Tensor:
        """Score of one item a row (field `item_id`), by the template `candidates_prompt`.

        Rows of the same user and history are scored once. A template that lists candidates takes all rows of a user
        as his candidates, in an order that does not depend on the order of the rows.

        Returns:
            [B]
        """
        template = self.ranking_templates.candidates
        if self.ranking_templates.lists_candidates:
            return self._list_scores(template, interaction[self.USER_ID], interaction[self.ITEM_ID])
        if template.answers == "answer":
            return self._question_scores(template, interaction)
        fields = (self.USER_ID, self.ITEM_SEQ_LEN, self.ITEM_SEQ)
        users, length, item_seq = (interaction[field] for field in fields)
        keys = torch.cat([users.unsqueeze(1), length.unsqueeze(1), item_seq], dim=1)
        distinct, place = torch.unique(keys, dim=0, return_inverse=True)
        scores = self._catalogue_scores(template, distinct[:, 0], distinct[:, 2:], distinct[:, 1])
        return scores[place, interaction[self.ITEM_ID]]

    def _list_scores(self, template: Template, users: Tensor, items: Tensor) -> Tensor:
        distinct, candidates, row, column = self.candidate_lists(users, items)
        scores = self._in_parts(
            template,
            Sample(distinct, distinct, candidates=candidates),
            lambda encoded, part: self.ranking.candidate_scores(self.network, encoded, part.column("candidates")),
        )
        return scores[row, column]

    def _question_scores(self, template: Template, interaction) -> Tensor:
        fields = (self.USER_ID, self.ITEM_ID, self.ITEM_SEQ, self.ITEM_SEQ_LEN)
        users, items, item_seq, length = (interaction[field] for field in fields)
        no, yes = self.writer.answers[:, 0].tolist()
        return self._in_parts(
            template,
            Sample(users, items, history=left_pad(item_seq, length)),
            lambda encoded, _: answer_scores(self.network, encoded, yes, no),
        )

    @torch.no_grad()
    def explain(self, template: Template, rows: np.ndarray, n_beams: int = 1) -> list[str]:
        """Generates what users say.

        Args:
            template: Of the group `explanation`.
            rows: Rows of `explanations`, int64 [B].
            n_beams: 1 decodes greedily.
        """
        chosen = self.explanations.iloc[rows]
        users, items = (torch.tensor(chosen[name].to_numpy(), device=self.device) for name in ("user_id", "item_id"))
        sample = Sample(users, items, rows=torch.as_tensor(rows, device=self.device))
        return self.network.generate(
            self.writer.write(template, sample), n_beams, self.writer.settings.max_target_tokens
        )


def _ids(tokens: Sequence[str]) -> dict[str, int]:
    """Id of every token but the pad."""
    return {str(token): index for index, token in enumerate(tokens) if index}


def _starts(
    naming: ItemTokenSettings,
    features: np.ndarray,
    width: int,
    item_ranks: np.ndarray,
    user_ranks: np.ndarray,
    history: HistoryIndex,
) -> NameVectors:
    """What names start from that start from images; token r is the item or user of rank r."""
    by_item = content_vectors(features, width, naming.id_seed)
    items = users = None
    if naming.starts_from_images(naming.id_scheme):
        items = torch.from_numpy(by_item[np.argsort(item_ranks)]).float()
    if naming.starts_from_images(naming.user_scheme):
        by_user = mean_vectors(by_item, history, naming.id_seed)
        users = torch.from_numpy(by_user[np.argsort(user_ranks)]).float()
    return NameVectors(items, users)


def _names(scheme: Scheme, ranks: np.ndarray, backbone: T5Backbone) -> TokenNames:
    return token_names(scheme, ranks, backbone.tokenizer)
