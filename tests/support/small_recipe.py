"""A small table and a data set for it, in a module that scripts of their own process can import."""

import time

import numpy as np
from PIL import Image

from recbole_perpeft.data.content import IMAGE, ItemContent
from recbole_perpeft.data.photos.images import DIGEST_BYTES, process_images
from recbole_perpeft.store.recipe import STAMP, ComputedChunk, Recipe
from recbole_perpeft.store.rows import UnusableRowsError

N_ITEMS = 5


class SmallRecipe(Recipe):
    """Lengths of titles and small pictures, two rows a chunk; `computed` lists the chunks that were computed."""

    format, digest = "small table, version 1", "image_digest"

    def __init__(self, content, name="small", delay=0.0):
        about = {"name": name, "sizes": (2, 3)}
        super().__init__(content, IMAGE, f"small rows of {content.name}", about, 2, content.titles, True)
        self.computed = []
        self._delay = delay

    def layout(self, values):
        return {
            "length": ("<f4", ()),
            "pixels": ("|u1", (3, 2, 3)),
            "title_length": ("<i8", (1,)),
            self.digest: ("|u1", (DIGEST_BYTES,)),
            STAMP: ("<i8", (3,)),
        }

    def check(self, folder, values):
        if values["name"] != self.about["name"]:
            raise UnusableRowsError(f"{folder}: the name changed.")

    def marks(self):
        return super().marks() | {"title_length": self._lengths(self.texts)}

    def compute(self, files, chunks):
        for chunk in chunks:
            time.sleep(self._delay)
            images = process_images(chunk.image_paths, shrunk, (2, 3))
            lengths = self._lengths(chunk.texts)
            rows = {
                "length": lengths[:, 0].astype("<f4"),
                "pixels": images.pixels,
                "title_length": lengths,
                self.digest: images.digests,
                STAMP: images.stamps,
            }
            damaged = {str(chunk.start + place): why for place, why in images.damaged.items()}
            self.computed.append(chunk.index)
            yield ComputedChunk(chunk.index, chunk.start, rows, damaged).write(files)

    def finish(self, files, chunks):
        return {"n_chunks": len(chunks)}

    @staticmethod
    def _lengths(titles):
        return np.array([[len(title)] for title in titles], dtype="<i8")


def shrunk(image):
    return np.asarray(image.resize((3, 2))).transpose(2, 0, 1)


def draw(path, seed, size=(20, 15), **options):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path, **options)


def make_items(folder, n=N_ITEMS):
    """A data set `shop` of titles and images."""
    images = folder / "images"
    images.mkdir(parents=True)
    for i in range(n):
        draw(images / f"é{i}.png", i)
    write_table(folder, [(f"é{i}", f"Größe {i}") for i in range(n)])
    return folder


def write_table(folder, rows):
    lines = "".join(f"{token}\t{title}\n" for token, title in rows)
    (folder / "shop.item").write_text("item_id:token\ttitle:token_seq\n" + lines, encoding="utf-8")


def load(folder, tokens=(), missing_content="error", fields=("title", "image")):
    return ItemContent.load(folder, "shop", tokens, missing_content, fields)
