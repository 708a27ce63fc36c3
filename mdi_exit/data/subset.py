"""``python -m mdi_exit.data.subset --out FILE``: makes the shipped images out of Fashion-MNIST's test set."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from mdi_exit.data import load

__all__ = ["main"]


def main() -> int:
    """The first N test images and their labels, compressed."""
    parser = argparse.ArgumentParser(prog="python -m mdi_exit.data.subset", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--data-dir", type=Path)
    args = parser.parse_args()
    dataset = load("fashion-mnist", "test", args.data_dir)
    images_NHW = dataset.images_NHWC[: args.count, ..., 0]
    np.savez_compressed(args.out, images_NHW=images_NHW, labels_N=dataset.labels_N[: args.count].astype(np.uint8))
    sys.stdout.write(f"{args.out}: {len(images_NHW)} images, {args.out.stat().st_size} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
