"""Mutators by kind of file: each changes one file in its place and says how."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
import yaml
from PIL import Image

from support.attack.mutate import HOSTILE, misplaced, mutated_bytes, mutated_lines, mutated_tree


def mutate_file(rng: Random, path: Path) -> str:
    """One mutation of a file that fits to its kind, of its bytes, or of what stands in its place.

    Returns:
        What was done, in a few words.
    """
    if rng.random() < 0.06:
        return f"{path.name}: {misplaced(rng, path)}"
    structured = _BY_SUFFIX.get(path.suffix)
    if structured is not None and rng.random() < 0.6:
        return f"{path.name}: {structured(rng, path)}"
    what, data = mutated_bytes(rng, path.read_bytes())
    path.write_bytes(data)
    return f"{path.name}: {what}"


def _of_lines(separator: bytes) -> Callable[[Random, Path], str]:
    def mutate(rng: Random, path: Path) -> str:
        what, data = mutated_lines(rng, path.read_bytes(), separator)
        path.write_bytes(data)
        return what

    return mutate


def mutate_json(rng: Random, path: Path) -> str:
    what, tree = mutated_tree(rng, json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(tree, ensure_ascii=rng.random() < 0.5), encoding="utf-8", errors="surrogatepass")
    return what


def mutate_yaml(rng: Random, path: Path) -> str:
    what, tree = mutated_tree(rng, yaml.safe_load(path.read_text(encoding="utf-8")))
    path.write_text(yaml.safe_dump(tree, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return what


def mutate_json_lines(rng: Random, path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    row = rng.randrange(len(lines))
    what, tree = mutated_tree(rng, json.loads(lines[row]))
    lines[row] = json.dumps(tree)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"line {row + 1}, {what}"


def mutate_array(rng: Random, path: Path) -> str:
    """Another shape, type, order or value of an array."""
    array = np.load(path, allow_pickle=False)
    kind = rng.choice(("type", "shape", "rows", "value", "order", "objects"))
    if kind == "type":
        array = array.astype(rng.choice(("<f4", "<f8", "<f2", "<i8", "|u1", "|b1", ">f4", "<c8", "<U3")))
    elif kind == "shape":
        array = rng.choice((array.reshape(-1), array[None], array[..., :1], array[:0], np.float32(1.0)))
    elif kind == "rows":
        array = rng.choice((array[:-1], np.concatenate([array, array[:1]]), array[::-1]))
    elif kind == "value":
        array = array.copy()
        flat = array.reshape(-1)
        flat[rng.randrange(len(flat))] = rng.choice((0, 1, np.nan if array.dtype.kind == "f" else 127))
    elif kind == "order":
        array = np.asfortranarray(array)
    np.save(path, array.astype(object) if kind == "objects" else array, allow_pickle=True)
    return kind


def mutate_safetensors(rng: Random, path: Path) -> str:
    """Of the header, which then has its right length, or of a tensor."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    kind = rng.choice(("header", "header", "length", "tensor"))
    if kind == "header":
        what, header = mutated_tree(rng, json.loads(data[8 : 8 + size]))
        head = json.dumps(header).encode("utf-8", "surrogatepass")
        path.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + size :])
        return what
    if kind == "length":
        wrong = rng.choice((0, 1, size - 1, size + 1, 2**40, 2**64 - 1))
        path.write_bytes(wrong.to_bytes(8, "little") + data[8:])
        return f"a header of {wrong} bytes"
    start = 8 + size + 4 * rng.randrange((len(data) - 8 - size) // 4)
    value = rng.choice((np.nan, np.inf, 1e38, 0.0))
    path.write_bytes(data[:start] + np.float32(value).tobytes() + data[start + 4 :])
    return f"{value} in a tensor"


def mutate_checkpoint(rng: Random, path: Path) -> str:
    what, content = mutated_tree(rng, torch.load(path, weights_only=True))
    torch.save(content, path)
    return what


def mutate_parquet(rng: Random, path: Path) -> str:
    """Another name, type, value or number of columns or rows."""
    table = pa.parquet.read_table(path)
    place = rng.randrange(table.num_columns)
    name = table.column_names[place]
    kind = rng.choice(("drop", "rename", "text", "nulls", "rows", "double", "value", "lists", "binary"))
    if kind == "drop":
        table = table.drop_columns([name])
    elif kind == "rename":
        table = table.rename_columns([f"{one}x" if one == name else one for one in table.column_names])
    elif kind == "rows":
        table = table.slice(0, rng.randrange(table.num_rows))
    elif kind == "double":
        table = pa.concat_tables([table, table.slice(0, 3)])
    else:
        values = table.column(name).to_pylist()
        row = rng.randrange(len(values))
        if kind == "value":
            others = {int: (-1, 0, 10**12), bool: (None, not values[row])}
            values[row] = rng.choice(others.get(type(values[row]), ("", "x", None)))
        changed = {
            "text": [str(value) for value in values],
            "nulls": [None if number == row else value for number, value in enumerate(values)],
            "value": values,
            "lists": [[value] for value in values],
            "binary": [str(value).encode() + b"\xff" for value in values],
        }[kind]
        table = table.set_column(place, name, pa.array(changed))
    pa.parquet.write_table(table, path)
    return f"{kind} of {name}"


def mutate_photo(rng: Random, path: Path) -> str:
    """Another form, size, mode or format under the same name."""
    with Image.open(path) as opened:
        photo = opened.convert("RGB")
    kind = rng.choice(("mode", "size", "format", "comment", "turned"))
    buffer = io.BytesIO()
    if kind == "mode":
        photo.convert(rng.choice(("L", "1", "P", "RGBA", "LA"))).save(buffer, "PNG")
    elif kind == "size":
        photo.resize(rng.choice(((1, 1), (1, 900), (900, 1), (2, 3), (1500, 1500)))).save(buffer, "PNG")
    elif kind == "format":
        photo.save(buffer, rng.choice(("JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO", "TGA")))
    elif kind == "comment":
        photo.save(buffer, "PNG", icc_profile=bytes(rng.randbytes(50)), exif=b"Exif\0\0" + rng.randbytes(40))
    else:
        exif = Image.Exif()
        exif[0x0112] = rng.choice((0, 3, 6, 8, 99))
        photo.save(buffer, "JPEG", exif=exif)
    path.write_bytes(buffer.getvalue())
    return kind


def mutated_words(rng: Random, words: list[str]) -> tuple[str, list[str]]:
    """One change of a command line, and what it is; the system lets no zero byte through."""
    words = list(words)
    place = rng.randrange(len(words))
    kind = rng.choice(("value", "value", "value", "key", "drop", "double", "bytes", "extra", "split"))
    flag, _, value = words[place].partition("=")
    if kind == "value":
        words[place] = f"{flag}={rng.choice(HOSTILE)}"
    elif kind == "key":
        words[place] = f"{flag}{rng.choice('xs_-=')}={value}"
    elif kind == "drop":
        del words[place]
    elif kind == "double":
        words.append(f"{flag}={rng.choice((value, 'other'))}")
    elif kind == "bytes":
        words[place] = mutated_bytes(rng, words[place].encode())[1].decode(errors="surrogateescape")
    elif kind == "extra":
        words.insert(
            place, rng.choice(("--", "-", "", "x", "--x", "--=", "--=x", "-m", "--seed", "--resume=/nowhere"))
        )
    else:
        words[place : place + 1] = [flag, value]
    words = [word.replace("\0", "") for word in words]
    return f"{kind}: {' '.join(words)[:300]!r}", words


_BY_SUFFIX = {
    **{suffix: _of_lines(b"\t") for suffix in (".inter", ".item", ".user", ".tsv")},
    ".csv": _of_lines(b","),
    ".json": mutate_json,
    ".yaml": mutate_yaml,
    ".jsonl": mutate_json_lines,
    ".npy": mutate_array,
    ".safetensors": mutate_safetensors,
    ".pth": mutate_checkpoint,
    ".parquet": mutate_parquet,
    ".png": mutate_photo,
}
