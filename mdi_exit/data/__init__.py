"""Data sets as plain arrays, read from local files."""

from mdi_exit.data.sets import DATASETS, Dataset, load, shipped

__all__ = ["DATASETS", "Dataset", "load", "shipped"]
