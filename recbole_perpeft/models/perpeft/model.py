"""PerPEFT and its user-blind counterpart GlobalPEFT."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, cast

import torch
from torch import Tensor

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.settings import Settings, setting, settings_from
from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.models.base import ContentRecommender
from recbole_perpeft.models.build import Surroundings
from recbole_perpeft.models.perpeft.content import ItemEncoderSettings, build_item_encoder
from recbole_perpeft.models.perpeft.side_by_side import SideBySideTrainer
from recbole_perpeft.nn.adapt.groups import ALL_GROUPS
from recbole_perpeft.nn.item_encoder import ItemEncoder
from recbole_perpeft.nn.users.sasrec import initialise_like_perpeft


@dataclass(frozen=True)
class GroupSettings(Settings):
    """How users are grouped and how groups are trained."""

    n_groups: int = setting(8, "Number of user groups.", least=1)
    min_group_size: int = setting(16, "Smaller groups are dissolved.", least=1)
    grouping: Literal["kmeans", "random", "user_field"] = setting(
        "kmeans", "kmeans on global user vectors (the paper) | random | user_field."
    )
    group_field: str | None = setting(
        None, "With user_field: the column of the .user file that names each user's group."
    )
    grouping_history: Literal["train", "train_valid"] = setting(
        "train", "train, or train_valid as in the authors' code (validation leaks into groups)."
    )
    group_negative_ratio: float = setting(
        1.0, "Share of negatives from the group's items; the rest from the catalogue.", least=0, most=1, kind="rate"
    )
    epochs_global: int = setting(10, "Epochs of the global stage.", least=0)
    global_run: str | None = setting(
        None, "Folder of a finished GlobalPEFT run with the same settings, whose model takes the place of stage 1."
    )
    group_learning_rate: float | None = setting(
        None,
        "Of the personalised stage, in the place of learning_rate; the rates of encoders that param_groups: official "
        "has stay. By default the same. A lower one is good after a global stage that has run its course.",
        above=0,
        kind="rate",
    )
    shared_in_groups: Literal["train", "freeze"] = setting(
        "train",
        "Ids and user encoder in the personalised stage: train (the paper), or freeze: then the global stage ends at "
        "its best epoch, and so does each group, which keeps the global module if none is better on its valid users.",
    )
    fallback_margin: float = setting(
        0.0,
        "With freeze: standard errors by which a group's valid users must gain before it leaves the global module; 0 "
        "for any gain.",
        least=0,
    )
    groups_at_once: int = setting(
        1,
        "With freeze: groups that train side by side, each in a Ray task; in as many as this machine, or the cluster "
        "of ray_address, has places for.",
        least=1,
        kind="device",
    )
    regroup_every: int = setting(
        0, "Epochs after which users move to their most likely group; 0 never (the paper).", least=0
    )
    regroup_candidates: int = setting(
        0,
        "With regroup_every: items, drawn anew each time, that stand for the catalogue in likelihoods; 0 for all.",
        least=0,
    )
    regroup_temperature: float = setting(
        0.0,
        "With regroup_every: users are drawn from the posterior of groups, flattened by a temperature that falls to 0 "
        "during regroup_annealing. It begins at this share of the train targets that users have on average (0.3 to "
        "0.5 is good); 0 for the most likely group from the start.",
        least=0,
    )
    regroup_annealing: int = setting(
        15,
        "With regroup_temperature: personalised epochs after which it is 0; until then training does not stop early.",
        least=1,
    )
    group_mixing: float = setting(
        0.0,
        "With regroup_every: a user's scores are those of all groups, weighted by their posterior at the latest "
        "regrouping, flattened by a temperature of this share of users' mean train targets (0.5 is good); 0 for his "
        "own group alone, as before the first regrouping.",
        least=0,
    )

    def temperature(self, epochs: int) -> float:
        """Of a regrouping after so many personalised epochs and the one that it ends, in mean targets of a user."""
        return self.regroup_temperature * max(0.0, 1 - epochs / self.regroup_annealing)

    def check_epochs(self, epochs: int) -> None:
        """Whether users are regrouped at all where that is asked for, and come to rest before the training ends.

        Args:
            epochs: Of the personalised stage.
        """
        if self.regroup_every > epochs:
            raise PerPEFTError(
                f"regroup_every is {self.regroup_every}, but epochs is {epochs}, so that users would never move: "
                "raise epochs, or lower regroup_every"
            )
        if not self.regroup_every:
            return
        last = epochs // self.regroup_every * self.regroup_every
        if self.temperature(last - 1):
            raise PerPEFTError(
                f"epochs is {epochs}, and users would still be drawn into groups at the last regrouping, after epoch "
                f"{last}: raise epochs, or lower regroup_annealing ({self.regroup_annealing})"
            )

    def check_given(self, n_groups: int, n_users: int) -> None:
        """Whether groups that a column names can be regrouped; otherwise they may be of any size.

        Args:
            n_groups: That the column makes.
            n_users: With training items.
        """
        if self.regroup_every and n_groups * self.min_group_size > n_users:
            raise PerPEFTError(
                f"group_field {self.group_field} makes {n_groups} groups, and regroup_every keeps "
                f"{self.min_group_size} users or more in each; {n_users} users are too few: lower min_group_size"
            )

    def check(self) -> None:
        """A grouping that is given needs its column; groups that each have a best epoch keep their users."""
        if self.groups_at_once > 1 and self.shared_in_groups != "freeze":
            raise PerPEFTError(
                f"groups_at_once is {self.groups_at_once}, but groups that share what they train cannot train side by "
                "side: set shared_in_groups to freeze, or groups_at_once to 1"
            )
        if self.fallback_margin and self.shared_in_groups != "freeze":
            raise PerPEFTError(
                f"fallback_margin is {self.fallback_margin:g}, but only groups that are independent fall back: set "
                "shared_in_groups to freeze, or fallback_margin to 0"
            )
        if self.shared_in_groups == "freeze" and self.regroup_every:
            raise PerPEFTError(
                "shared_in_groups: freeze chooses each group's best epoch, which users who move make no sense of; set "
                "regroup_every to 0, or shared_in_groups to train"
            )
        for key in ("regroup_temperature", "group_mixing"):
            if getattr(self, key) and not self.regroup_every:
                raise PerPEFTError(
                    f"{key} is {getattr(self, key):g}, but without regroup_every nobody asks which group is likely: "
                    f"set regroup_every to 1, or {key} to 0"
                )
        if self.grouping == "user_field" and not self.group_field:
            raise PerPEFTError(
                "grouping: user_field needs group_field, the column of the .user file that names each user's group; "
                "load it with load_col: {user: [user_id, <column>]}"
            )


class PerPEFT(ContentRecommender):
    r"""Personalised parameter-efficient fine-tuning (Kim, Hwang and Shin, WWW 2026, arXiv 2602.09445).

    Users form C interest groups; each group has its own PEFT module and projector on one frozen foundation model,
    so an item has C vectors. The id embedding and the user encoder are shared. Until `personalise` is called
    everybody uses the global module.

    Buffers:
        user_group: [n_users], the group of each user; -1 before grouping (and for the pad user).
        group_centroids: [C, d], mean global user vector of each group; [0, d] before grouping.
        group_weights: With `group_mixing` alone, [n_users, C], what each group counts for a user; zeros for users
            without train items; [n_users, 0] before grouping.
    """

    trainer_class = SideBySideTrainer
    settings_classes = (ItemEncoderSettings, GroupSettings)
    personalised_stage = True
    # Settings whose default gives way where one of others is set.
    replaced_defaults: Mapping[str, tuple[str, ...]] = MappingProxyType(
        {"foundation_model": ("text_encoder", "image_encoder", "towers")}
    )

    def content_fields(self, config) -> tuple[str, ...]:
        """Titles and images of a dual encoder, or the fields of the towers."""
        return settings_from(config, ItemEncoderSettings).fields

    def build_item_encoder(self, config, content: ItemContent, item_tokens: Sequence[str]) -> ItemEncoder:
        """Encoders with PEFT modules, projectors and id vectors (PerPEFT section 3)."""
        settings = settings_from(config, ItemEncoderSettings)
        if settings.reads_ids_alone and self.personalised_stage:
            raise PerPEFTError("peft_type: ids leaves groups nothing of their own; choose GlobalPEFT")
        return build_item_encoder(settings, Surroundings.of(config, content, item_tokens))

    def reset_parameters(self) -> None:
        """As PerPEFT's authors start."""
        initialise_like_perpeft(self.item_encoder.projectors)
        if self.item_encoder.id_embedding is not None:
            initialise_like_perpeft(self.item_encoder.id_embedding)
        super().reset_parameters()

    def __init__(self, config, dataset) -> None:
        super().__init__(config, dataset)
        self.group_settings = settings_from(config, GroupSettings)
        self.register_buffer("user_group", torch.full((self.n_users,), -1))
        self.register_buffer("group_centroids", torch.zeros(0, config["hidden_size"]))
        if self._weighs_groups:
            self.register_buffer("group_weights", torch.zeros(self.n_users, 0))

    @property
    def n_groups(self) -> int:
        """Number of groups in use; 0 before grouping."""
        return self.group_centroids.shape[0]

    def personalise(self, user_group: Tensor, group_centroids: Tensor) -> None:
        """Gives every group a copy of the global module and projector.

        Args:
            user_group: [n_users], -1 for users who are in no group (the pad).
            group_centroids: [C, d].
        """
        self.item_encoder.personalise(len(group_centroids))
        self._watched = None
        if self._weighs_groups:
            self.group_weights = _one_hot(user_group, len(group_centroids)).to(self.device)
        self.set_groups(user_group, group_centroids)
        self.to(self.device)

    def set_groups(self, user_group: Tensor, group_centroids: Tensor) -> None:
        """Moves users between the existing groups; arguments as in `personalise`."""
        self.user_group = user_group.to(self.device)
        self.group_centroids = group_centroids.to(self.device)
        self._group_on_cpu = self.user_group.cpu()
        self._log_popularities.clear()

    def group_of(self, users: Tensor) -> Tensor | None:
        """Group of each user, [B]; users outside training go through `nearest_group` instead."""
        return self._group_on_cpu[users] if self.n_groups else None

    @property
    def _weighs_groups(self) -> bool:
        return self.personalised_stage and self.group_settings.group_mixing > 0

    @property
    def mixes_groups(self) -> bool:
        """Whether users are scored by all groups."""
        return self.n_groups > 0 and self._weighs_groups

    def weights_of(self, users: Tensor, groups: Tensor) -> Tensor:
        """What each group counts for users, [B, C]: all of it the given group, where nobody knows better.

        Args:
            users: Internal ids, [B].
            groups: Their groups, [B].
        """
        weights = self.group_weights[users.to(self.device)]
        return torch.where(weights.any(1, keepdim=True), weights, _one_hot(groups.to(self.device), self.n_groups))

    def mixed_user_vectors(self, item_seq: Tensor, length: Tensor, weights: Tensor, catalogue: Tensor) -> Tensor:
        """Vectors of users whose product with those of an item is the weighted sum of its scores under all groups.

        Args:
            item_seq, length: As of `user_vectors`.
            weights: [B, C].
            catalogue: Item vectors of all groups side by side, [at least n_items, C * d].

        Returns:
            [B, C * d]
        """
        of_groups = zip(weights.unsqueeze(-1).unbind(1), catalogue.chunk(self.n_groups, dim=1), strict=True)
        return torch.cat([weight * self.user_vectors(item_seq, length, part) for weight, part in of_groups], dim=1)

    def _encoded(self, group: int | None) -> Tensor:
        if group != ALL_GROUPS:
            return super()._encoded(group)
        side_by_side = torch.cat([self.catalogue(number) for number in range(self.n_groups)], dim=1)
        self._catalogues.update(enumerate(side_by_side.chunk(self.n_groups, dim=1)))  # no number is there twice
        return side_by_side

    def _parts(self, interaction) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """As in `ContentRecommender`; where groups are mixed, all rows at once."""
        if not self.mixes_groups:
            yield from super()._parts(interaction)
            return
        item_seq, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        self._drop_outdated_catalogues()
        groups = cast(Tensor, self._groups_of_rows(interaction))
        weights = self.weights_of(interaction[self.USER_ID], groups)
        catalogue = self._catalogue(ALL_GROUPS)
        yield torch.arange(len(length)), self.mixed_user_vectors(item_seq, length, weights, catalogue), catalogue

    def _groups_of_rows(self, interaction) -> Tensor | None:
        """Of users without train items, of whom no group knows, the nearest group by the row's history."""
        groups = super()._groups_of_rows(interaction)
        if groups is None or (groups >= 0).all():
            return groups
        rows = (groups < 0).nonzero().squeeze(1)
        item_seq, length = (interaction[field][rows.to(self.device)] for field in (self.ITEM_SEQ, self.ITEM_SEQ_LEN))
        groups[rows] = self.nearest_group(self.user_vectors(item_seq, length, self._catalogue(None))).cpu()
        return groups

    def nearest_group(self, user_vectors: Tensor) -> Tensor:
        """Group whose centroid is nearest to each global user vector.

        Args:
            user_vectors: [B, d], from `user_vectors(..., group=None)`.

        Returns:
            [B]
        """
        return torch.cdist(user_vectors, self.group_centroids).argmin(1)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False):
        """As in `nn.Module`; a checkpoint of the personalised stage brings its groups along."""
        n_groups = state_dict["group_centroids"].shape[0]
        if self._weighs_groups and not n_groups:  # of a GlobalPEFT, which has none
            state_dict = {"group_weights": self.group_weights, **state_dict}
        if n_groups and not self.n_groups:
            self.personalise(state_dict["user_group"], state_dict["group_centroids"])
        if n_groups != self.n_groups:
            raise PerPEFTError(f"the checkpoint holds {n_groups} groups, the model {self.n_groups}; load it afresh")
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        self.set_groups(self.user_group, self.group_centroids)
        return result


def _one_hot(groups: Tensor, n_groups: int) -> Tensor:
    """[B, C]; nothing for groups of -1."""
    return (groups.unsqueeze(1) == torch.arange(n_groups, device=groups.device)).float()


class GlobalPEFT(PerPEFT):
    """PerPEFT with one module for everybody and no personalised stage: the user-blind baseline."""

    personalised_stage = False
