"""The sample log: what training sees of each sample, epoch by epoch, as numbers in parquet files."""

import logging
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bft_trl.io import atomic_file
from bft_trl.training.metrics import SUMS

# `push_to_hub` skips names that begin with an underscore.
FOLDER = "_samples"
SCHEMA = pa.schema(
    {
        "epoch": pa.int32(),  # from 0
        "step": pa.int64(),  # optimizer step, from 1
        "row": pa.int64(),  # index in the data set that the trainer was given
        "tokens": pa.int32(),  # supervised tokens
        "nll": pa.float32(),  # mean over them, nats, unweighted
        "group_confidence": pa.float32(),
        "sample_weight": pa.float32(),  # includes the factor of `weight_column`
        "window_first": pa.int32(),  # the window of lowest confidence, [first, end) in supervised tokens
        "window_end": pa.int32(),
    }
)
_COLUMNS = ("epoch", "step", "row", "window_first", "window_end", *SUMS)
# A part is rewritten until it has this many rows, so that a flush costs little and a run has few files.
_ROWS = 20_000

logger = logging.getLogger(__name__)


class SampleLog:
    """Collects rows and writes them to `_samples/part-<number>-<rank>.parquet` in the output folder."""

    def __init__(self, output_dir: Path, *, rank: int = 0) -> None:
        self.folder = output_dir / FOLDER
        self.rank = rank
        self.part = 0
        self.pending: list[torch.Tensor] = []  # (B, len(_COLUMNS) + 1) of each batch, on its device
        self.written: list[pa.Table] = []  # what the file of this part has already
        self.flushed, self.took = time.monotonic(), 0.0

    def drop_after(self, step: int) -> None:
        """Drops the rows after `step`, the last step of the checkpoint that training resumes from, or 0."""
        for file in sorted(self.folder.glob("part-*.parquet")):
            table = read_part(file)
            kept = table.filter(pa.compute.less_equal(table["step"], step))
            if not len(kept):
                logger.warning("Removed %s, the sample log of an earlier run.", file)
                file.unlink()
            elif len(kept) < len(table):
                _write(file, kept)

    def open_last_part(self) -> None:
        """Continues the last part of this rank, or the one after it if it is full."""
        self.pending, self.written, self.part = [], [], 0
        parts = {int(file.name.split("-")[1]): file for file in self.folder.glob(f"part-*-{self.rank}.parquet")}
        if parts:
            table = read_part(parts[max(parts)])
            self.part, self.written = (max(parts), [table]) if len(table) < _ROWS else (max(parts) + 1, [])

    def add(self, rows: torch.Tensor, sums: torch.Tensor, windows: torch.Tensor, epoch: int, step: int) -> None:
        """Keeps the samples of a batch on their device, and writes at most every 30 seconds.

        Args:
            rows, sums: (B,) their row numbers, and (B, len(SUMS) + 1) of `sum_by_sample`.
            windows: (B, 2) bounds of the window of lowest confidence in the sample's supervised tokens.
            epoch, step: at which they were seen.
        """
        seen = [sums.new_full((len(sums), 1), number) for number in (epoch, step)]  # float64 holds integers exactly
        self.pending.append(torch.cat([*seen, rows[:, None].to(sums), windows.to(sums), sums], dim=1))
        if time.monotonic() - self.flushed > max(30, 100 * self.took):  # under 1 % of the time
            self.flush()

    def flush(self) -> None:
        """Writes the pending rows."""
        began = time.monotonic()
        if self.pending:
            table = pa.concat_tables([*self.written, self._pending_table()])
            _write(self.folder / f"part-{self.part:05d}-{self.rank}.parquet", table)
            self.pending, self.written = [], [table]
            if len(table) >= _ROWS:
                self.part, self.written = self.part + 1, []
        self.flushed = time.monotonic()
        self.took = self.flushed - began

    def _pending_table(self) -> pa.Table:
        columns = dict(zip(_COLUMNS, torch.cat(self.pending).cpu().numpy().T, strict=False))
        columns["nll"] /= columns["tokens"]
        return pa.Table.from_arrays([pa.array(columns[kind.name]).cast(kind.type) for kind in SCHEMA], schema=SCHEMA)


def read_part(file: Path) -> pa.Table:
    """Returns the rows of one part. Raises ValueError that names the file if it is not one."""
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: cannot be read ({error}). Remove it to continue without its rows.") from error
    if not table.schema.equals(SCHEMA):
        raise ValueError(f"{file}: not a part of a sample log; its columns are {table.column_names}.")
    return table


def _write(file: Path, table: pa.Table) -> None:
    with atomic_file(file) as temporary:
        pq.write_table(table, temporary, compression="zstd")
