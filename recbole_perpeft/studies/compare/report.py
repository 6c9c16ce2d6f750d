"""The report of a comparison: Markdown, LaTeX, CSV, per-user ranks, and one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recbole_perpeft.core.whole import written_whole
from recbole_perpeft.studies.compare import analysis
from recbole_perpeft.studies.compare.beyond import beyond, beyond_by_group
from recbole_perpeft.studies.compare.records import DatasetRecord
from recbole_perpeft.studies.compare.sections import plots, protocol_sentence, tables
from recbole_perpeft.studies.compare.splits import kendall, side_by_side
from recbole_perpeft.studies.compare.stability import stability
from recbole_perpeft.studies.report.escape import in_csv, in_latex, in_markdown
from recbole_perpeft.studies.report.page import Chapter, to_html

TITLE = "Comparison of recommenders"


def write_report(folder: Path, records: Sequence[DatasetRecord], baseline: str) -> dict[str, pd.DataFrame]:
    """Write all files of the report.

    | file | content |
    |---|---|
    | `report.html` | tables and plots |
    | `report.md`, `tables.tex` | the tables |
    | `quality.csv`, `significance.csv`, `cost.csv`, `beyond.csv`, `popularity.csv`, `groups.csv` ... | all numbers |
    | `runs.csv` | a row a run, with its folder |
    | `ranks.parquet` | rank of every test item in every run: significance can be computed again from it |

    Args:
        folder: where to; it is made if it is not there.
        records: finished runs by data set.
        baseline: name of the model that the others are compared with.

    Returns:
        The tables of the CSV files by name.

    Raises:
        PerPEFTError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chapters = [_chapter(record, baseline) for record in records]
    if beside := side_by_side(records):
        chapters.insert(0, Chapter("Splits side by side", [], beside, {}))
    _write(folder / "report.md", to_markdown(chapters))
    _write(folder / "tables.tex", to_latex(chapters))
    _write(folder / "report.html", to_html(TITLE, chapters))
    numbers = _numbers(records, baseline)
    for name, table in numbers.items():
        path = folder / f"{name}.csv"
        if table.empty:
            path.unlink(missing_ok=True)  # of an earlier comparison
            continue
        with written_whole(path) as draft:
            in_csv(table).to_csv(draft, index=False)
    _write_ranks(folder / "ranks.parquet", records)
    return {name: table for name, table in numbers.items() if not table.empty}


def _chapter(record: DatasetRecord, baseline: str) -> Chapter:
    return Chapter(
        title=record.plan.title,
        paragraphs=[protocol_sentence(record.plan.protocol), *record.remarks],
        tables=tables(record, baseline),
        figures=plots(record, baseline),
    )


def to_markdown(chapters: Sequence[Chapter]) -> str:
    """The tables, best in bold, second best in italics."""
    parts = [f"# {TITLE}"]
    for chapter in chapters:
        parts += [f"## {in_markdown(chapter.title)}", *map(in_markdown, chapter.paragraphs)]
        parts += [table.to_markdown() for table in chapter.tables]
    return "\n\n".join(parts) + "\n"


def to_latex(chapters: Sequence[Chapter]) -> str:
    """The tables for a paper; they need the package booktabs."""
    parts = ["% \\usepackage{booktabs}"]
    for chapter in chapters:
        parts += [f"% {in_latex(chapter.title)}", *(table.to_latex() for table in chapter.tables)]
    return "\n\n".join(parts) + "\n"


def _numbers(records: Sequence[DatasetRecord], baseline: str) -> dict[str, pd.DataFrame]:
    """All tables by name, empty where there is nothing to tell."""
    kinds = {
        "runs": _runs,
        "quality": analysis.quality,
        "intervals": analysis.intervals,
        "significance": lambda record: analysis.significance(record, baseline),
        "cost": analysis.cost,
        "tuning": analysis.tuning,
        "beyond": beyond,
        "beyond_groups": beyond_by_group,
    }
    with_rows = {
        "history": analysis.by_history,
        "popularity": analysis.by_popularity,
        "slices": analysis.by_slice,
        "groups": lambda record: analysis.by_group(record, baseline),
        "stability": stability,
    }
    made = {name: [(record, of(record)) for record in records] for name, of in kinds.items()}
    made |= {name: [(record, of(record)) for record in records if record.has_parts] for name, of in with_rows.items()}
    return {name: _together(parts) for name, parts in made.items()} | {"splits": kendall(records)}


def _together(parts: Sequence[tuple[DatasetRecord, pd.DataFrame]]) -> pd.DataFrame:
    tables = [_with_dataset(record, table) for record, table in parts if len(table)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _with_dataset(record: DatasetRecord, table: pd.DataFrame) -> pd.DataFrame:
    table = table.copy()
    table.insert(0, "dataset", record.plan.dataset)
    if record.plan.split is not None:
        table.insert(1, "split", record.plan.split)
    return table


def _runs(record: DatasetRecord) -> pd.DataFrame:
    rows = []
    for model in record.models:
        for seed, run in model.runs.items():
            row = {"model": model.name, "seed": seed, "valid_score": run.result["best_valid_score"]}
            rows.append(row | run.result["test_result"] | {"run_folder": str(run.folder), "error": None})
    for failure in record.failures:
        job = failure.job
        names = {"model": job.spec.name, "seed": job.seed}
        rows.append(names | {"run_folder": str(job.folder), "error": failure.error})
    return pd.DataFrame(rows)


def _write_ranks(path: Path, records: Sequence[DatasetRecord]) -> None:
    """A run at a time, so that one run's ranks are held in memory."""
    names = [(field, pa.dictionary(pa.int32(), pa.string())) for field in ("dataset", "model", "user", "item")]
    schema = pa.schema([*names, ("seed", pa.int64()), ("rank", pa.int32())])
    with written_whole(path) as draft, pq.ParquetWriter(draft, schema, compression="zstd") as writer:
        for record in records:
            for model in record.models:
                for seed, run in model.runs.items():
                    ranks = run.ranks()
                    if ranks is not None:
                        place = {"dataset": record.plan.title, "model": model.name, "seed": seed}
                        table = ranks[["user", "item", "rank"]].assign(**place)[schema.names]
                        writer.write_table(pa.Table.from_pandas(table, schema, preserve_index=False))


def _write(path: Path, text: str) -> None:
    with written_whole(path) as draft:
        draft.write_text(text, encoding="utf-8")
