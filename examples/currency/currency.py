"""Currency conversion: an order's total in one currency, by the rates of a file.

A function on columns would load the file for each batch; a class loads it once, in `open`.
"""

import csv
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from millrace.api import BatchTransform


class Price(msgspec.Struct):
    """What is read of an order's properties; the rest of the JSON is skipped."""

    total: float | None = None
    currency: str | None = None


class ConvertCurrency(BatchTransform):
    """Add `total_eur` to events that have `properties.total` and `properties.currency`.

    Args:
        rates: a CSV file with the columns currency and eur: what one unit of it is worth.
    """

    adds = {"total_eur": pa.float64()}
    version = "1"

    def __init__(self, rates: str) -> None:
        self._path = Path(rates)

    def open(self) -> None:
        with self._path.open(encoding="utf-8", newline="") as lines:
            self._rates = {row["currency"]: float(row["eur"]) for row in csv.DictReader(lines)}
        self._read = msgspec.json.Decoder(Price).decode

    def apply(self, batch: pa.RecordBatch) -> dict[str, Any]:
        return {"total_eur": [self._convert(text) for text in batch.column("properties").to_pylist()]}

    def _convert(self, properties: str | None) -> float | None:
        price = self._read(properties) if properties else Price()
        if price.total is None or price.currency is None:
            return None
        return round(price.total * self._rates[price.currency], 2)  # KeyError: a currency without a rate
