"""What training saw of each sample, epoch by epoch, in parquet files that survive a kill."""

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bft_trl.io import atomic_file
from bft_trl.training.metrics import SUMS
from bft_trl.training.rows import DataRows

FOLDER = "samples"
SCHEMA = pa.schema(
    {
        "epoch": pa.int32(),  # from 0
        "step": pa.int64(),  # optimizer step, from 1
        "row": pa.int64(),  # in the data as it was given
        "id": pa.string(),  # of column "id", or the row number
        "source": pa.string(),  # of the group column or of column "source"
        "tokens": pa.int32(),  # supervised ones
        "nll": pa.float32(),  # mean over them, nats, unweighted
        "group_confidence": pa.float32(),
        "sample_weight": pa.float32(),  # with the factor of the weight column
        "window_first": pa.int32(),  # the weakest window, in supervised tokens
        "window_end": pa.int32(),
        "window_text": pa.string(),
    }
)
# A file is written over until it has so many records, so that a flush costs little and a run has few files.
_RECORDS = 20_000
_LONGEST_TEXT = 400


class SampleLog:
    """Collects records of samples and writes them to `samples/part-<number>-<rank>.parquet` in the output folder.

    Written with each checkpoint, before it is complete, at the end, and in between as often as costs under 1 % of the
    time. A run that resumes at a step drops the records behind it, so that none is there twice.
    """

    def __init__(self, output_dir: Path, rows: DataRows, tokenizer: Any, *, rank: int = 0) -> None:
        self.folder = output_dir / FOLDER
        self.rows = rows
        self.tokenizer = tokenizer
        self.rank = rank
        self.part = 0
        self.pending: list[dict[str, Any]] = []
        self.written: list[pa.Table] = []  # what is in the file of this part already
        self.flushed, self.took = time.monotonic(), 0.0

    def begin(self, step: int, *, main: bool) -> None:
        """Makes the folder agree with a run that goes on after `step`, 0 for a new one. On the main process alone."""
        self.pending, self.written = [], []
        for file in sorted(self.folder.glob("part-*.parquet")) if main else []:
            table = read_part(file)
            kept = table.filter(pa.compute.less_equal(table["step"], step))
            if not len(kept):
                file.unlink()
            elif len(kept) < len(table):
                _write(file, kept)

    def number_parts(self) -> None:
        """Goes on in the last part that is there, or behind it; after [`begin`] has ended on the main process."""
        parts = {int(file.name.split("-")[1]): file for file in self.folder.glob(f"part-*-{self.rank}.parquet")}
        self.part = max(parts, default=0)
        if parts:
            table = read_part(parts[self.part])
            self.part, self.written = (self.part, [table]) if len(table) < _RECORDS else (self.part + 1, [])

    def add(
        self,
        rows: torch.Tensor,
        sums: torch.Tensor,
        windows: torch.Tensor,
        targets: torch.Tensor,
        *,
        epoch: int,
        step: int,
    ) -> None:
        """Keeps the samples of a batch, and writes where it is time.

        Args:
            rows: (B,) their numbers.
            sums: (B, len(SUMS) + 1) of `sums_by_sample`.
            windows: (B, 2) bounds of the weakest window in the sample's supervised tokens.
            targets: (N,) token ids of the supervised tokens, sample after sample.
            epoch, step: at which they were seen.
        """
        end = 0
        for row, values, (first, stop) in zip(rows.tolist(), sums.tolist(), windows.tolist(), strict=True):
            found = dict(zip(SUMS, values, strict=False))
            start, end = end, end + int(found["tokens"])
            self.pending.append(
                {
                    "epoch": epoch,
                    "step": step,
                    "row": row,
                    "tokens": int(found["tokens"]),
                    "nll": found["nll"] / found["tokens"],
                    "group_confidence": found["group_confidence"],
                    "sample_weight": found["sample_weight"],
                    "window_first": first,
                    "window_end": stop,
                    "window": targets[start + first : start + stop].tolist(),
                }
            )
        waited = time.monotonic() - self.flushed
        if waited > max(30, 100 * self.took):
            self.flush()

    def flush(self) -> None:
        """Writes what is pending; the file of this part is replaced by one that has it as well."""
        began = time.monotonic()
        if self.pending:
            texts = self.tokenizer.batch_decode([record.pop("window") for record in self.pending])
            for record, text in zip(self.pending, texts, strict=True):
                record["id"], record["source"] = self.rows.ids[record["row"]], self.rows.sources[record["row"]]
                record["window_text"] = text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."
            table = pa.concat_tables([*self.written, pa.Table.from_pylist(self.pending, schema=SCHEMA)])
            _write(self.folder / f"part-{self.part:05d}-{self.rank}.parquet", table)
            self.pending, self.written = [], [table]
            if len(table) >= _RECORDS:
                self.part, self.written = self.part + 1, []
        self.flushed = time.monotonic()
        self.took = self.flushed - began


def read_part(file: Path) -> pa.Table:
    """One part. Raises ValueError that names the file where it is damaged."""
    try:
        table = pq.read_table(file, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: cannot be read ({error}). Remove it to go on without its records.") from error
    if not table.schema.equals(SCHEMA):
        raise ValueError(f"{file}: not a record of samples; its columns are {table.column_names}.")
    return table


def _write(file: Path, table: pa.Table) -> None:
    with atomic_file(file) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
