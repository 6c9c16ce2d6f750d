"""How long the texts of a batch are, and that there is something to pool of each."""

import pytest
import torch

from recbole_perpeft.store.inputs import ContentCache
from support.small_processor import SmallProcessor
from support.small_recipe import load, make_items, write_table

N = 5
ALL = torch.arange(N)


@pytest.fixture
def shop(tmp_path):
    return make_items(tmp_path / "shop")


def open_or_build(shop, missing_content="error", processor=None):
    content = load(shop, (), missing_content)
    return ContentCache.open_or_build(
        content, processor or SmallProcessor(), shop.parent / "cache", show_progress=False
    )


class LeftPaddingProcessor(SmallProcessor):
    """Pads on the left, as tokenizers of decoders do."""

    def text(self, titles):
        ids, mask = super().text(titles)
        return ids[:, ::-1].copy(), mask[:, ::-1].copy()


@pytest.mark.parametrize("processor", [SmallProcessor(), LeftPaddingProcessor()], ids=["right", "left"])
def test_a_batch_is_as_long_as_the_longest_of_its_texts(shop, processor):
    cache = open_or_build(shop, processor=processor)
    lengths = cache.text_lengths(ALL)
    for row in range(N):
        assert cache.batch(torch.tensor([row]))["input_ids"].shape[1] == max(1, lengths[row])
    assert cache.batch(ALL)["input_ids"].shape[1] == lengths.max()
    assert cache.text_lengths(torch.tensor([-1])).tolist() == [0]


@pytest.mark.parametrize("trims", [True, False])
def test_an_empty_text_has_a_token_to_pool_of(shop, trims):
    """Tokenizers of decoders add none of their own."""
    write_table(shop, [(f"é{row}", "abc" if row else "") for row in range(N)])
    cache = open_or_build(shop, "blank", processor=SmallProcessor(trim_text=trims))
    assert cache.batch(torch.tensor([0]))["attention_mask"].sum() == 1
    assert cache.batch(ALL)["attention_mask"].sum(1).tolist() == [1, *[3] * (N - 1)]
    assert cache.batch(torch.tensor([-1, 0]))["attention_mask"].sum(1).tolist() == [0, 1]


def test_text_is_trimmed_only_if_the_processor_allows(shop):
    pads = torch.tensor([-1, -1])
    assert open_or_build(shop).batch(pads)["input_ids"].shape == (2, 1)
    cache = open_or_build(shop, processor=SmallProcessor(trim_text=False))
    assert cache.batch(torch.tensor([0]))["input_ids"].shape == (1, 10)
    assert cache.batch(torch.tensor([], dtype=torch.long))["pixel_values"].shape == (0, 3, 6, 8)
