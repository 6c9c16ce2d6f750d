"""Data in which some items have content and no interactions."""

import shutil


def settings_with_new_items(aspects, path):
    """Settings of quick runs on a copy of the data in which five items have lost all their interactions, and these.

    Args:
        aspects: A `data_path` with the data set `aspects`.
        path: Folder of the copy, and of what runs write.
    """
    shutil.copytree(aspects / "aspects", path / "aspects")
    log = path / "aspects" / "aspects.inter"
    header, *rows = log.read_text().splitlines()
    new_items = sorted({row.split("\t")[1] for row in rows})[:5]
    log.write_text("\n".join([header, *(row for row in rows if row.split("\t")[1] not in new_items)]) + "\n")
    settings = {
        "data_path": str(path),
        "cache_folder": str(path / "cache"),
        "runs_folder": str(path / "runs"),
        "epochs_global": 1,
        "show_progress": False,
        "user_inter_num_interval": "[4,inf)",
    }
    return settings, new_items
