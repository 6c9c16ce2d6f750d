"""Digests: what they are is part of the names of caches and of what manifests and checkpoints hold."""

import os

import numpy as np
import pandas as pd
import pytest
import torch

from recbole_perpeft.core.digest import (
    checksum,
    code_fingerprint,
    columns_digest,
    data_fingerprint,
    digest,
    file_hash,
    large_file_hash,
    numbers_hash,
    row_digests,
    sha256,
    stream_hash,
    tensor_sample,
    value_hash,
)
from recbole_perpeft.core.errors import PerPEFTError

TENSOR = torch.arange(3000, dtype=torch.float32).reshape(30, 100) / 7


def test_digests_are_those_of_version_0_1_0():
    assert value_hash({"text": "é", "image": "b"}) == value_hash({"image": "b", "text": "é"}) == "ea46087a540b35fd"
    rows = row_digests([b"a", "é".encode()])
    assert rows.tobytes().hex() == "27c35e6e9373877f29e562464e46497ed4b1b0202b21bb84e60a3d272ecab0db"
    assert rows.shape == (2, 16) and row_digests([]).shape == (0, 16)
    assert columns_digest(["[PAD]", "é"], ["[PAD]", "x", "yz"]).hexdigest() == "50fc58f04f0ab9d60ea8c280b74ef257"
    table = pd.DataFrame({"u": [1, 2], "s": ["a", "b"], "t": [0.5, np.nan]})
    assert numbers_hash(table) == "7d05df4883e5b786744e21e701d7038c"


def test_checksums_are_those_of_version_0_1_0():
    arrays = [np.arange(6, dtype="<f4").reshape(2, 3), np.arange(4, dtype="u1")]
    assert [checksum([array]) for array in arrays] == [2447872023, 2344191507]
    assert checksum(arrays) == 760452924 and checksum([]) == 0
    assert checksum([arrays[0].T]) == checksum([arrays[0].T.copy()]) == 1607444346


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tensor: tensor, "38b08b1b2ecfd865"),
        (torch.Tensor.half, "c5a26d3f3b32cae8"),
        (torch.Tensor.bfloat16, "646791a7090d3b3d"),
        (torch.Tensor.double, "e9ce22d4e6c90a5e"),
        (torch.Tensor.t, "90cb5d2ddf229b04"),
        (lambda tensor: tensor.to("meta"), "49cb150eece2a555"),
    ],
)
def test_samples_of_tensors_are_those_of_version_0_1_0(change, expected):
    tensor = change(torch.nn.Parameter(TENSOR))
    described = repr((str(tensor.dtype), tuple(tensor.shape))).encode()
    assert sha256(described + tensor_sample(tensor))[:16] == expected


def test_one_bit_changes_the_sample_of_a_tensor():
    other = TENSOR.clone()
    other.view(torch.int32)[29, 98] ^= 1  # between the values that are sampled
    assert tensor_sample(other) != tensor_sample(TENSOR)


def test_files(tmp_path):
    file = tmp_path / "f"
    file.write_bytes(b"weights")
    assert large_file_hash(file) == digest(b"wei", b"ghts").hexdigest() == "873ac3c6df553eaa62331fd4ff9b521a"
    assert file_hash(file) == sha256(b"weights")
    with open(file, "rb") as stream:
        stream.seek(3)
        assert stream_hash(stream) == sha256(b"ghts")
    with pytest.raises(PerPEFTError, match="cannot read .*nothing: No such file"):
        file_hash(tmp_path / "nothing")


@pytest.fixture
def shop(tmp_path):
    """The folder of a small data set."""
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "toy.inter").write_text("user_id:token\titem_id:token\nu1\ti1\nu1\ti2\n")
    return folder


def test_changes_of_a_data_set(shop):
    (shop / "images").mkdir()
    (shop / "images" / "i1.png").write_bytes(b"1234")
    seen = [data_fingerprint(shop, "toy")]
    assert data_fingerprint(shop, "toy") == seen[0]

    log = shop / "toy.inter"
    os.utime(log)  # the content counts
    assert data_fingerprint(shop, "toy") == seen[0]
    log.write_text(log.read_text().replace("u1\ti", "u2\ti", 1))
    seen.append(data_fingerprint(shop, "toy"))
    (shop / "toy.item").write_text("item_id:token\ttitle:token_seq\n")
    seen.append(data_fingerprint(shop, "toy"))
    (shop / "images" / "i1.png").write_bytes(b"123")
    seen.append(data_fingerprint(shop, "toy"))
    (shop / "images" / "i1.png").rename(shop / "images" / "i2.png")
    seen.append(data_fingerprint(shop, "toy"))
    assert len(set(seen)) == 5


def test_a_data_set_that_cannot_be_read(shop):
    (shop / "toy.item").symlink_to(shop / "nowhere")
    with pytest.raises(PerPEFTError, match="cannot read the data set"):
        data_fingerprint(shop, "toy")


def test_changes_of_the_code(tmp_path):
    module = tmp_path / "model.py"
    (tmp_path / "studies").mkdir()
    (tmp_path / "weights.bin").write_bytes(b"12")
    module.write_text("rate = 0.1\n")
    before = code_fingerprint(tmp_path)
    module.write_text("# how fast\nrate = (0.1)\n")
    (tmp_path / "studies" / "report.py").write_text("title = ''\n")
    assert code_fingerprint(tmp_path) == before
    module.write_text("rate = 0.2\n")
    assert code_fingerprint(tmp_path) != before
    module.write_text("rate = 0.1\n")
    assert code_fingerprint(tmp_path) == before
    (tmp_path / "weights.bin").write_bytes(b"13")
    assert code_fingerprint(tmp_path) != before


def test_a_device_among_the_files_of_a_data_set_is_refused(tmp_path):
    (tmp_path / "shop.user").symlink_to("/dev/null")  # /dev/zero would never end
    with pytest.raises(PerPEFTError, match="not a regular file: .*shop.user"):
        data_fingerprint(tmp_path, "shop")
