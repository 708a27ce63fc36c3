"""Data sets as plain arrays, read from local files, and their split by seed."""

from mdi_exit.data.pixels import inputs_of, preprocess
from mdi_exit.data.sets import DATASETS, Dataset, load, shipped
from mdi_exit.data.splits import IMAGE_SPECS, SPECS, Splits, splits

__all__ = [
    "DATASETS",
    "IMAGE_SPECS",
    "SPECS",
    "Dataset",
    "Splits",
    "inputs_of",
    "load",
    "preprocess",
    "shipped",
    "splits",
]
