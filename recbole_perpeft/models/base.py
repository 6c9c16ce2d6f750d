"""What every recommender that reads item content shares: item encoder, user encoder, loss and scores."""

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor
from torch.nn import functional

from recbole_perpeft import __version__
from recbole_perpeft.core.digest import state_digest
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.logs import LOGGER
from recbole_perpeft.core.run_settings import PhotoLimits, RunSettings
from recbole_perpeft.core.settings import Settings, same_as, setting, settings_from
from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.data.dataset import SequenceDataset
from recbole_perpeft.data.sampler import Candidates, Draws
from recbole_perpeft.models.build import ContentControl
from recbole_perpeft.nn.adapt.groups import GLOBAL
from recbole_perpeft.nn.item_encoder import ItemEncoder
from recbole_perpeft.nn.losses import Loss, LossChoice, NextItems, loss_from, vectors_of
from recbole_perpeft.nn.losses.in_batch import log_popularity
from recbole_perpeft.nn.users.choice import UserEncoderChoice, build_user_encoder
from recbole_perpeft.nn.users.sasrec import left_pad
from recbole_perpeft.pretrained.dual import check_same_foundation
from recbole_perpeft.store.catalogues import KeptCatalogues
from recbole_perpeft.training.optimisers import OF_TABLES
from recbole_perpeft.training.ranks import pairs_of, ranks_by_products
from recbole_perpeft.training.rates import ContentTrainer

_NOT_IN_VECTORS = ("rate", "place", "device", "display", "protocol")  # kinds of settings


@dataclass(frozen=True)
class IdSettings(Settings):
    """What is asked of id vectors."""

    id_embedding_reg: float = setting(
        0.0, "Weight of the Frobenius norm of the id embedding in the loss.", least=0, kind="rate"
    )
    sparse_ids: bool = setting(
        False,
        "Whether a step leaves id vectors alone that its batches do not hold, so that it costs no more with a million "
        "items: SparseAdam in the place of Adam, and no weight decay of id vectors.",
    )
    learner: str = same_as(RunSettings, "learner")

    def check(self) -> None:
        """What would reach all rows in every step."""
        if not self.sparse_ids:
            return
        if self.id_embedding_reg:
            raise PerPEFTError(
                "sparse_ids: the norm of id_embedding_reg is one of all id vectors, in every step; set "
                "id_embedding_reg to 0, or sparse_ids to False"
            )
        if self.learner.lower() not in OF_TABLES:
            raise PerPEFTError(
                f"sparse_ids: learner {self.learner} cannot leave rows of a table alone; choose one of "
                f"{', '.join(OF_TABLES)}"
            )

    def apply(self, model: str, item_encoder: ItemEncoder, loss: Loss) -> None:
        """Lets gradients of id vectors hold the rows alone that a batch has reached, if that is asked for.

        Args:
            model: Name of the model.
            item_encoder: Its item encoder.
            loss: Its loss.

        Raises:
            PerPEFTError: There are no id vectors, or the loss reaches all of them.
        """
        ids = item_encoder.id_embedding
        if self.id_embedding_reg and ids is None:
            raise PerPEFTError(f"id_embedding_reg: items of {model} have no id vectors; set it to 0")
        if self.sparse_ids and ids is None:
            raise PerPEFTError(f"sparse_ids: items of {model} have no id vectors; set it to False")
        if self.sparse_ids and loss.draws.catalogue:
            raise PerPEFTError(
                "sparse_ids: a loss over the whole catalogue reaches all id vectors in every step; choose another "
                "loss_type, such as sampled_softmax, or set sparse_ids to False"
            )
        if ids is not None:
            ids.sparse = self.sparse_ids


class ContentRecommender(SequentialRecommender):
    """A sequential recommender whose item vectors come from item content.

    Subclasses say how items are encoded (`content_fields`, `build_item_encoder`) and which group a user belongs to
    (`group_of`); here everybody shares one module, written `None`.

    Args:
        config: RecBole configuration with the keys of `settings_classes` and of what they choose.
        dataset: The train part of the data set; gives the item tokens in the order of RecBole's ids.
    """

    input_type = InputType.PAIRWISE
    dataset_class = SequenceDataset
    trainer_class = ContentTrainer
    settings_classes: tuple[type[Settings], ...] = (UserEncoderChoice, LossChoice, IdSettings, ContentControl)

    @staticmethod
    def train_draws(config) -> Draws:
        """What the train loader draws for the loss."""
        return loss_from(config).draws

    def __init__(self, config, dataset) -> None:
        super().__init__(config, dataset)
        self.n_users = dataset.num(self.USER_ID)
        self.POS_ITEM_SEQ = "pos_" + self.ITEM_SEQ
        self.NEG_ITEM_SEQ = config["NEG_PREFIX"] + self.ITEM_SEQ
        self.loss = loss_from(config)
        self.id_settings = settings_from(config, IdSettings)
        self._interactions = dataset.interactions_in_rows
        self._log_popularities: dict[int | None, Callable[[float], Tensor]] = {}
        item_tokens = dataset.field2id_token[self.ITEM_ID]
        content = ItemContent.load(
            config.dataset_folder,
            config["dataset"],
            item_tokens[1:],
            config["missing_content"],
            self.content_fields(config),
            settings_from(config, PhotoLimits),
        )
        self.item_tokens_with_content = content.tokens
        self.item_encoder = self.build_item_encoder(config, content, item_tokens)
        self.id_settings.apply(type(self).__name__, self.item_encoder, self.loss)
        if self.loss.draws.catalogue and not self.item_encoder.content_encoder.reads_stored:
            raise PerPEFTError(
                f"loss_type: {config['loss_type']} would send all {self.n_items - 1:,} items through a foundation "
                "model in every step; choose sampled_softmax, or an encoder that reads stored vectors or states "
                "(peft_type: iisan or none, adaptation: frozen, the model IISAN)"
            )
        self.user_encoder = build_user_encoder(config, self.max_seq_length)
        self.reset_parameters()
        self._settings = {
            declared.name: config[declared.name]
            for cls in config.settings_classes
            for declared in cls.declared()
            if declared.kind not in _NOT_IN_VECTORS
        }
        self._kept: KeptCatalogues | None = None
        self._catalogues: dict[int | None, Tensor] = {}
        self._catalogue_version = -1
        self._watched: list[Tensor] | None = None

    @abstractmethod
    def content_fields(self, config) -> tuple[str, ...]:
        """What is read of an item: `image`, and columns of text such as `title`."""

    @abstractmethod
    def build_item_encoder(self, config, content: ItemContent, item_tokens: Sequence[str]) -> ItemEncoder:
        """Puts the item encoder together.

        Args:
            config: RecBole configuration.
            content: The fields of `content_fields`.
            item_tokens: Item tokens in the order of RecBole's ids; the first is the pad.
        """

    def reset_parameters(self) -> None:
        """Gives fresh weights to what is not initialised as it is built."""
        self.user_encoder.reset_parameters()

    def get_extra_state(self) -> dict[str, str]:
        """What the frozen weights are: a state dict does not hold them."""
        return {"foundation_fingerprint": self.item_encoder.foundation_fingerprint}

    def set_extra_state(self, state: dict[str, str]) -> None:
        """Compares the frozen weights with those of a state dict.

        Raises:
            PerPEFTError: If the state dict belongs to another foundation model.
        """
        check_same_foundation(state["foundation_fingerprint"], self.item_encoder.foundation_fingerprint)

    def group_of(self, users: Tensor) -> Tensor | None:
        """Group of each user, [B] on the CPU, or None while all users share one module."""
        return None

    def calculate_loss(self, interaction) -> Tensor:
        """Loss of a batch of training rows, all of one group.

        Every distinct item of the batch is encoded once. Ids are sorted out on the CPU, where the training loader
        leaves them, so that the accelerator is not waited for.

        Args:
            interaction: Fields `user_id` and `item_length` [B]; `item_id_list` and `pos_item_id_list` [B, L],
                right-padded; `neg_item_id_list` [B, L, ...] if the loss draws negatives.

        Returns:
            Scalar loss.
        """
        loss, ids = self.loss(self._next_items(interaction)), self.item_encoder.id_embedding
        weight = self.id_settings.id_embedding_reg
        return loss if ids is None or not weight else loss + weight * ids.weight.norm()

    def _next_items(self, interaction) -> NextItems:
        length = interaction[self.ITEM_SEQ_LEN].cpu()
        inputs, targets = (left_pad(interaction[field].cpu(), length) for field in (self.ITEM_SEQ, self.POS_ITEM_SEQ))
        negatives = inputs.new_empty(*inputs.shape, 0)
        if self.loss.draws.negatives:
            negatives = left_pad(interaction[self.NEG_ITEM_SEQ].cpu(), length).view(*inputs.shape, -1)
        candidates = Candidates.from_fields(interaction) if self.loss.draws.candidates else None
        drawn = [negatives.flatten()] if candidates is None else [negatives.flatten(), candidates.items]
        items = torch.cat([inputs.flatten(), targets.flatten(), *drawn]).unique()
        if self.loss.draws.catalogue:
            items = torch.arange(self.n_items)
        group = self.group_of_batch(interaction)
        vectors = self.item_encoder(items, group)
        hidden = self.user_encoder(vectors_of(inputs, items, vectors), inputs.to(vectors.device))
        return NextItems(
            hidden, inputs, targets, items, vectors, self.log_popularity_of(group), self.n_items, negatives, candidates
        )

    def log_popularity_of(self, group: int | None) -> Callable[[float], Tensor]:
        """Gives log-probabilities of items among what train rows of a group's users hold, or those of all for None.

        They stay on the CPU with the ids, or each step would wait for the accelerator.
        """
        if group not in self._log_popularities:
            users, items = (torch.from_numpy(column) for column in self._interactions.pairs())
            groups = None if group is None else self.group_of(users)
            counts = torch.bincount(items if groups is None else items[groups == group], minlength=self.n_items)
            self._log_popularities[group] = cache(partial(log_popularity, counts))
        return self._log_popularities[group]

    def group_of_batch(self, interaction) -> int | None:
        """The group of a training batch's users; None while all share one module."""
        groups = self.group_of(interaction[self.USER_ID].cpu())
        if groups is None:
            return None
        group = int(groups[0])
        if (groups != group).any():
            raise RuntimeError("a training batch holds users of several groups")
        return group

    @property
    def n_groups(self) -> int:
        """Number of groups in use; 0 while all share one module."""
        return 0

    def catalogue(self, group: int | None, kept: bool = True) -> Tensor:
        """Vectors of all items for a group, [n_items, d]; computed once until a weight changes, if they are kept."""
        if not kept:
            return self._encoded(group)
        self._drop_outdated_catalogues()
        return self._catalogue(group)

    def read_catalogues(self, path: Path) -> None:
        """From now on, looks for the vectors of a group in a file before it computes them."""
        self._kept = KeptCatalogues(path)

    def write_catalogues(self, path: Path, most_bytes: int) -> None:
        """Keeps the vectors of everybody and of each group in a file, for `read_catalogues`.

        Args:
            path: The file; an earlier one goes in any case.
            most_bytes: If they need more, none are kept, and the log says so.
        """
        groups, of = [None, *range(self.n_groups)], self.digest_of_vectors()
        n_bytes = len(groups) * self.n_items * self.item_encoder.hidden_size * 4
        if of is not None and n_bytes <= most_bytes:
            KeptCatalogues(path).write(of, {_name_of(group): self.catalogue(group) for group in groups})
            return
        path.unlink(missing_ok=True)
        if of is not None and most_bytes:
            LOGGER.info(f"item vectors are not kept: {n_bytes / 1e6:,.0f} MB are more than keep_catalogues allows")

    def digest_of_vectors(self) -> str | None:
        """Identifies weights, content, settings and code that make item vectors; None if the content is unknown."""
        read = getattr(self.item_encoder.content_encoder, "input_digest", None)
        if read is None:
            return None
        about = [__version__, self.item_encoder.foundation_fingerprint, read(), self._settings]
        return state_digest(self.item_encoder.state_dict(), json.dumps(about, sort_keys=True, default=str))

    def _encoded(self, group: int | None) -> Tensor:
        shape = (self.n_items, self.item_encoder.hidden_size)
        of = None if self._kept is None else self.digest_of_vectors()
        found = None if self._kept is None or of is None else self._kept.read(_name_of(group), of, shape)
        return self.item_encoder.encode_catalogue(group) if found is None else found.to(self.device)

    def _drop_outdated_catalogues(self) -> None:
        if self._watched is None:
            self._watched = list(self.parameters())
        version = sum(parameter._version for parameter in self._watched)
        if version != self._catalogue_version:
            self._catalogues.clear()
            self._catalogue_version = version

    def _catalogue(self, group: int | None) -> Tensor:
        if group not in self._catalogues:
            self._catalogues[group] = self._encoded(group)
        return self._catalogues[group]

    def train(self, mode: bool = True) -> "ContentRecommender":
        """As in `nn.Module`; training drops the catalogue vectors."""
        self._watched = None  # parameters may have come or gone
        if mode:
            self._catalogues.clear()
        return super().train(mode)

    def user_vectors(self, item_seq: Tensor, length: Tensor, catalogue: Tensor) -> Tensor:
        """Vectors of users from their right-padded histories.

        Args:
            item_seq: Rows of `catalogue`, [B, L], right-padded as RecBole's rows; 0 = pad.
            length: [B].
            catalogue: Item vectors of the users' group, [at least n_items, d], as from `catalogue`.

        Returns:
            [B, d]
        """
        item_seq = left_pad(item_seq, length)
        return self.user_encoder.newest(functional.embedding(item_seq, catalogue), item_seq)

    def _groups_of_rows(self, interaction) -> Tensor | None:
        """Group by which each row of an evaluation batch is scored, [B]; None while all share one module."""
        return self.group_of(interaction[self.USER_ID].cpu())

    def _parts(self, interaction) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields (rows of the batch in one group, their user vectors, the group's catalogue)."""
        item_seq, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        self._drop_outdated_catalogues()  # once a batch: looking at all weights takes a while
        groups = self._groups_of_rows(interaction)
        if groups is None:
            catalogue = self._catalogue(None)
            yield torch.arange(len(length)), self.user_vectors(item_seq, length, catalogue), catalogue
            return
        for group in groups.unique().tolist():
            rows = (groups == group).nonzero().squeeze(1).to(length.device)
            catalogue = self._catalogue(group)
            yield rows, self.user_vectors(item_seq[rows], length[rows], catalogue), catalogue

    def full_sort_predict(self, interaction) -> Tensor:
        """Scores of all items; every user is scored with the vectors of his own group.

        Args:
            interaction: RecBole's evaluation rows: `user_id`, `item_id_list` [B, L], `item_length`.

        Returns:
            [B, n_items]
        """
        parts = [(rows, users @ catalogue.T) for rows, users, catalogue in self._parts(interaction)]
        if len(parts) == 1:
            return parts[0][1]
        scores = torch.empty(len(interaction), self.n_items, device=interaction[self.ITEM_SEQ].device)
        for rows, part in parts:
            scores[rows] = part
        return scores

    @property
    def scores_are_products(self) -> bool:
        """Whether `ranks_of` has the scores of `full_sort_predict`: not if a subclass or an object has its own."""
        own = type(self).full_sort_predict is not ContentRecommender.full_sort_predict
        return not own and "full_sort_predict" not in vars(self)

    def ranks_of(self, interaction, masked: tuple[Tensor, Tensor] | None, targets: Tensor) -> Tensor:
        """Ranks of targets [B] by the scores of `full_sort_predict`, which are never all there at once, int64 [B].

        Args:
            interaction: As there.
            masked: Row and item of every pair that is no candidate.
            targets: [B].
        """
        ranks = torch.empty(len(targets), dtype=torch.long, device=interaction[self.ITEM_SEQ].device)
        for rows, users, catalogue in self._parts(interaction):
            ranks[rows] = ranks_by_products(users, catalogue, targets[rows.cpu()], pairs_of(rows.cpu(), masked))
        return ranks

    def predict(self, interaction) -> Tensor:
        """Score of one item a row (field `item_id`).

        Returns:
            [B]
        """
        items = interaction[self.ITEM_ID]
        scores = torch.empty(len(items), device=items.device)
        for rows, users, catalogue in self._parts(interaction):
            scores[rows] = (users * catalogue[items[rows]]).sum(-1)
        return scores


def _name_of(group: int | None) -> str:
    return GLOBAL if group is None else str(group)
