"""Coverage-guided fuzzing of one target, in a process of its own: ``python -m mdi_exit.fuzzing.guided TARGET FLAGS FOLDER``.

atheris (libFuzzer for Python; the extra ``dev``) counts the branches of this project's own modules; what compiled libraries
do inside (msgspec, zstandard, Pillow, ONNX Runtime) it does not see. Half of its inputs come from libFuzzer's mutations, half
from the target's own. FLAGS are libFuzzer's; what it finds worth keeping goes to FOLDER.
"""

from __future__ import annotations

import logging
import sys
from random import Random

__all__ = ["main"]


def main(argv: list[str]) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=["mdi_exit", "source"], enable_loader_override=False):
        from mdi_exit.fuzzing.targets import TARGETS

    target = TARGETS[argv[1]]
    examples = target.examples()

    def one(data: bytes) -> None:
        try:
            target.run(data)
        except target.refuses:
            return

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() < 0.5:
            return bytes(atheris.Mutate(data, most))
        return target.mutate(rng, data or rng.choice(examples))[:most]

    atheris.Setup([argv[0], *argv[2:]], one, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
