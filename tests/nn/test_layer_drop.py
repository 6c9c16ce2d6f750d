import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.nn.layer_drop import LayerDropSettings, check_blocks, kept_blocks

PUBLISHED = {
    12: (2, 4, 6, 8, 10, 12),
    24: (4, 8, 12, 16, 20, 24),
    28: (3, 8, 13, 18, 23, 28),
    32: (2, 8, 14, 20, 26, 32),
    48: (3, 12, 21, 30, 39, 48),
    80: (5, 20, 35, 50, 65, 80),
    56: (1, 12, 23, 34, 45, 56),
}
EQ5 = {**PUBLISHED, 48: (8, 16, 24, 32, 40, 48), 80: (10, 24, 38, 52, 66, 80), 56: (6, 16, 26, 36, 46, 56)}
TABLE_VII = {
    2: (6, 12),
    3: (4, 8, 12),
    4: (3, 6, 9, 12),
    6: (2, 4, 6, 8, 10, 12),
    12: tuple(range(1, 13)),
}


@pytest.mark.parametrize(("n_layers", "expected"), PUBLISHED.items())
def test_max_span_gives_the_published_lists(n_layers, expected):
    assert kept_blocks(n_layers) == expected


@pytest.mark.parametrize(("n_layers", "expected"), EQ5.items())
def test_equation_5(n_layers, expected):
    assert kept_blocks(n_layers, 6, "eq5") == expected


@pytest.mark.parametrize(("n_blocks", "expected"), TABLE_VII.items())
def test_table_vii_keeps_even_blocks(n_blocks, expected):
    assert kept_blocks(12, n_blocks, "eq5") == expected


@pytest.mark.parametrize(("n_blocks", "expected"), [(1, (12,)), (2, (1, 12)), (3, (2, 7, 12)), (12, TABLE_VII[12])])
def test_max_span_with_other_numbers_of_blocks(n_blocks, expected):
    assert kept_blocks(12, n_blocks) == expected


def test_none_keeps_every_block():
    assert kept_blocks(24, None) == tuple(range(1, 25))


@given(st.integers(1, 100), st.data())
def test_max_span_is_the_widest_even_list_that_ends_with_the_last_block(n_layers, data):
    n_blocks = data.draw(st.integers(1, n_layers))
    strides = [s for s in range(1, n_layers + 1) if n_layers - s * (n_blocks - 1) >= 1]
    expected = tuple(n_layers - max(strides) * (n_blocks - 1 - j) for j in range(n_blocks))
    assert kept_blocks(n_layers, n_blocks) == check_blocks(expected, n_layers)


@pytest.mark.parametrize("n_blocks", [0, 13, -1])
def test_a_backbone_with_too_few_blocks_is_refused(n_blocks):
    with pytest.raises(PerPEFTError, match="n_blocks.*1 to 12"):
        kept_blocks(12, n_blocks)


def test_rules_that_cannot_be_followed_are_refused():
    with pytest.raises(PerPEFTError, match="eq5 goes 2 blocks at a time"):
        kept_blocks(7, 6, "eq5")
    with pytest.raises(PerPEFTError, match="layerdrop_rule.*max_span"):
        kept_blocks(12, 6, "even")


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ((), "empty"),
        ((0, 2), "no block 0"),
        ((2, 13), "no block 13.*1 to 12"),
        ((True, 2), "no block True"),
        (("2",), "no block '2'"),
        ((2, 4, 4), "block 4 is repeated"),
        ((4, 2), "block 2 stands after block 4"),
    ],
)
def test_wrong_lists_name_key_and_block(blocks, message):
    with pytest.raises(PerPEFTError, match=f"image_blocks: .*{message}"):
        check_blocks(blocks, 12, "image_blocks")


def test_settings_choose_states_for_each_tower():
    assert LayerDropSettings().states((24, 12)) == ((0, *PUBLISHED[24]), (0, *PUBLISHED[12]))
    assert LayerDropSettings(n_blocks=None).states([3]) == ((0, 1, 2, 3),)
    explicit = LayerDropSettings(text_blocks=(1, 5), n_blocks=2, layerdrop_rule="eq5")
    assert explicit.states((12, 12)) == ((0, 1, 5), (0, 6, 12))
    alone = LayerDropSettings(n_blocks=2, text_blocks=(1,), image_blocks=(3, 7))
    assert alone.states([12], ("image",)) == ((0, 3, 7),) and alone.states([12], ("text",)) == ((0, 1),)
    with pytest.raises(PerPEFTError, match="image_blocks: there is no block 13"):
        LayerDropSettings(image_blocks=(13,)).states((24, 12))
