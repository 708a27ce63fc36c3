"""The most that is taken from outside: every limit once, with its reason, all of them checked before memory is spent.

What comes from the broker, from a file or from another program may be anything. A limit lies well above what the system
itself ever makes, and well below what would hurt a board of 1 GB.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "MAX_ARRAYS_BYTES",
    "MAX_AXES",
    "MAX_CONFIG_BYTES",
    "MAX_COUNT",
    "MAX_COUNTERS",
    "MAX_ELEMENTS",
    "MAX_GRAPH_BYTES",
    "MAX_GRAPH_DEPTH",
    "MAX_GRAPH_FIELDS",
    "MAX_GRAPH_NODES",
    "MAX_HEADER_BYTES",
    "MAX_IMAGE_FILE_PIXELS",
    "MAX_KEY_PARTS",
    "MAX_LABELS",
    "MAX_LAYERS",
    "MAX_MANIFEST_BYTES",
    "MAX_NAMES",
    "MAX_NAMES_HEARD",
    "MAX_PATH",
    "MAX_PAYLOAD_BYTES",
    "MAX_PIECES",
    "MAX_REAL",
    "MAX_REQUEST_BYTES",
    "MAX_SAMPLES",
    "MAX_SENT_PIXELS",
]

# --- messages

# The longest header that the system makes is a status with the seconds of 4096 layers, 37 KB. What a header of 64 KiB
# becomes in memory is at most some 3 MB (a dictionary of the shortest entries).
MAX_HEADER_BYTES: Final = 64 * 1024

# The largest tensor (below) as float32. The transport refuses packets of more than 16 MiB before that.
MAX_PAYLOAD_BYTES: Final = 64 * 1024 * 1024

# A photograph of a 25-megapixel camera as JPEG.
MAX_REQUEST_BYTES: Final = 8 * 1024 * 1024

# The nodes that a message names: a deployment has tens, and a thousand have been simulated.
MAX_NAMES: Final = 1024

# The nodes that a node has ever heard of: it remembers each, some 2 KB. Names that change at every start count too.
MAX_NAMES_HEARD: Final = 10_000

# The nodes that one item has passed: it may go round a ring several times.
MAX_PATH: Final = 64

# The counters of a node's load report; there are about twenty.
MAX_COUNTERS: Final = 256

# The training samples of one edge: what it weighs among others. ImageNet's whole tree has 14 million images.
MAX_SAMPLES: Final = 10**9

# Either way of 0, of any time, rate, temperature or exit state: what is finite stays so when added and multiplied.
MAX_REAL: Final = 1e12

# --- tensors and models

# Values of one feature tensor: 64 MiB as float32. Those of ResNet-50 at 224x224 have at most 802,816. What a compressed
# tensor may become is known from its shape, which has to be the manifest's.
MAX_ELEMENTS: Final = 2**24

# Axes of a tensor without batch: images have 3, video would have 4.
MAX_AXES: Final = 8

# The deepest networks in use have some hundreds of blocks.
MAX_LAYERS: Final = 4096

# ImageNet's whole tree has 21,841 classes.
MAX_LABELS: Final = 2**16

# Multiply-accumulates, parameters, samples: whole numbers that a float64 still tells apart.
MAX_COUNT: Final = 2**53

# ``model.json``: the shipped one has 5 KB, one of 4096 layers about 2 MB. In memory, what is not checked further in it
# (``network``, ``training``) takes up to forty times its bytes.
MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024

# One ONNX graph, a composed segment or a layer; the memory of a Jetson Nano is 4 GB.
MAX_GRAPH_BYTES: Final = 1 << 30

# Files of weights that a segment is put together of, and places where they go: two or so for each layer with weights.
MAX_PIECES: Final = 4096

# Operations of one ONNX graph: ResNet-152 as a whole has about 500.
MAX_GRAPH_NODES: Final = 2**16

# Protobuf fields of one ONNX graph; ResNet-152 has about 20,000. A million take some seconds to look through.
MAX_GRAPH_FIELDS: Final = 1_000_000

# Branches within branches of an ONNX graph.
MAX_GRAPH_DEPTH: Final = 4

# --- files and images

# TOML: the largest scenario in this repository has 4 KB. The reader's time grows with the square of a line's dots.
MAX_CONFIG_BYTES: Final = 1024 * 1024

# Parts of a dotted TOML key; ours have at most 3.
MAX_KEY_PARTS: Final = 32

# The arrays of one ``.npz`` file, unpacked: CIFAR-100 has 184 MB, outcomes of 50,000 samples over 1000 classes and 9 exits
# 1.8 GB.
MAX_ARRAYS_BYTES: Final = 8 << 30

# Of an image that somebody sent: 75 MB as RGB, and a few times that while it is decoded.
MAX_SENT_PIXELS: Final = 25_000_000

# Of an image file of the user's own.
MAX_IMAGE_FILE_PIXELS: Final = 64_000_000
