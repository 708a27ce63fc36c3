"""Cutting a traced network: where, into what, that it still trains, and that a written program is only what it says."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi_exit.errors import ArtifactError, UsageError

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from torch import Tensor, nn  # noqa: E402 - only with torch

from mdi_exit.model.build import built, rebuilt  # noqa: E402
from mdi_exit.model.graph import exported, tidied  # noqa: E402
from mdi_exit.model.partition import Partition, balanced, partitioned  # noqa: E402
from mdi_exit.model.program import dumped, loaded  # noqa: E402

SHAPE = (3, 8, 8)


def cut(
    module: nn.Module, shape: tuple[int, ...] = SHAPE, *, crossing: int = 1, layers: int | None = None
) -> Partition:
    graph = tidied(exported(module, shape, "model"), "model", shape)
    return partitioned(graph, shape, "model", crossing=crossing, layers=layers)


def logits(parts: Partition, x_N: Tensor) -> Tensor:
    for layer in parts.layers:
        x_N = layer(x_N)
    return parts.classifier(x_N)


def same(module: nn.Module, parts: Partition, shape: tuple[int, ...] = SHAPE) -> bool:
    """At batches that were not traced."""
    module.eval()
    batches = [torch.randn(count, *shape) for count in (1, 5)]
    with torch.no_grad():
        return all(torch.equal(module(x_N), logits(parts, x_N)) for x_N in batches)


class Residual(nn.Module):
    """Two blocks with a way around each; the second's convolutions share one norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = self.relu(x + self.norm(self.first(x)))
        x = self.relu(x + self.norm(self.second(x)))
        return self.head(self.dropout(x.mean((2, 3))))


class Sizes(nn.Module):
    """Uses the batch size, and a table made at its beginning, everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        table = torch.arange(16, dtype=torch.float32) / 16
        x = self.a(x.reshape(count, 12, 16)) + table
        x = torch.cat([self.token.expand(count, -1, -1), x], 1)
        x = self.b(x.reshape(count * 13, 16)).reshape(count, 13, 16) * table
        return self.c(x.mean(1) + table)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        c = self.c(a * b)
        return self.head((c[..., :4, :4] + a[..., :4, :4] + b[..., :4, :4]).mean((2, 3)))


class Overwriting(nn.Module):
    """What crosses between the convolutions is written into after the second."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        view = x[:, :2]
        y = self.b(x)
        view.mul_(2.0)
        return self.head((x + y).mean((2, 3)))


def test_blocks_with_a_way_around_stay_whole_and_cheap_operations_follow_the_costly() -> None:
    parts = cut(Residual())
    assert parts.names == ("stem", "first", "second")
    assert parts.shapes == ((4, 8, 8), (4, 8, 8), (4,))
    assert [sum(weight.numel() for weight in parts.classifier.parameters())] == [25]
    assert same(Residual(), cut(Residual())) is False, "random weights differ, so equality below says something"
    module = Residual()
    assert same(module, cut(module))


def test_batch_sizes_and_constant_tables_do_not_cross() -> None:
    module = Sizes()
    parts = cut(module, (3, 8, 8))
    assert len(parts.layers) == 2
    assert same(module, parts)


def test_several_tensors_cross_as_one_where_that_is_allowed() -> None:
    module = Dense()
    alone, packed = cut(module), cut(module, crossing=2)
    assert (len(alone.layers), len(packed.layers)) == (2, 3)
    assert packed.shapes[1] == (2 * 4 * 8 * 8,)
    assert same(module, alone)
    assert same(module, packed)


def test_no_cut_lies_where_a_tensor_is_overwritten_later() -> None:
    module = Overwriting()
    for crossing in (1, 2, 3):
        parts = cut(module, crossing=crossing)
        assert same(module, parts)
        assert len(parts.layers) == 2  # both convolutions, then the classifier


def test_a_layer_leaves_what_it_was_given_as_it_was() -> None:
    module = nn.Sequential(
        nn.ReLU(inplace=True), nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(256, 5)
    )
    x_NCHW = torch.randn(2, *SHAPE)
    before = x_NCHW.clone()
    with torch.no_grad():
        cut(module).layers[0](x_NCHW)
    assert torch.equal(x_NCHW, before)


def test_layers_train_as_the_model_does() -> None:
    module = Residual()
    parts = cut(module)
    network = nn.ModuleList([*parts.layers, parts.classifier]).train()
    statistics = [part.running_mean.clone() for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    x_NCHW = torch.randn(4, *SHAPE)
    assert not torch.equal(logits(parts, x_NCHW), logits(parts, x_NCHW)), "dropout drops"
    logits(parts, x_NCHW).sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())
    moved = [part.running_mean for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    assert statistics
    assert all(not torch.equal(old, new) for old, new in zip(statistics, moved, strict=True))
    network.eval()
    assert torch.equal(logits(parts, x_NCHW), logits(parts, x_NCHW))
    assert {weight.data_ptr() for weight in module.parameters()} == {
        weight.data_ptr() for weight in network.parameters()
    }


def test_neighbours_are_merged_to_at_most_so_many_layers() -> None:
    module = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(8)], nn.Flatten(), nn.Linear(192, 5))
    assert [len(cut(module, layers=count).layers) for count in (1, 2, 3, 4, 99)] == [1, 2, 3, 4, 8]
    assert cut(module, layers=4).names == ("0..1", "2..3", "4..5", "6..7")
    assert same(module, cut(module, layers=3))


@given(costs=st.lists(st.integers(0, 50), min_size=1, max_size=7), count=st.integers(1, 8))
def test_the_merge_is_the_best_of_all(costs: list[int], count: int) -> None:
    def squares(cuts: tuple[int, ...]) -> int:
        return sum(sum(costs[begin:stop]) ** 2 for begin, stop in itertools.pairwise((0, *cuts, len(costs))))

    found = tuple(balanced(costs, count))
    parts = min(count, len(costs))
    assert len(found) == parts - 1
    assert list(found) == sorted(set(found))
    assert squares(found) == min(map(squares, itertools.combinations(range(1, len(costs)), parts - 1)))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if x.mean() > 0:
            x = x.relu()
        return self.head(x.mean((2, 3)))


class Woven(nn.Module):
    """Everything is used again at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        return self.head((x + a + b).mean((2, 3))) + self.head((x - a).mean((2, 3)))


class TwoAnswers(Residual):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), x


@pytest.mark.parametrize(
    ("make", "shape", "says"),
    [
        (Branching, SHAPE, r"at test_partition.py:\d+ \(if x.mean\(\) > 0:\).* depends on the data"),
        (Residual, (1, 8, 8), "to have 3 channels, but got 1"),
        (Woven, SHAPE, r"at least 2 between a and b: x \(N, 3, 8, 8\), conv2d \(N, 3, 8, 8\)"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), SHAPE, r"1 operation\(s\) that multiply"),
        (TwoAnswers, SHAPE, "one output, logits N×K, got 2"),
        (lambda: nn.Conv2d(3, 4, 1), SHAPE, r"logits N×K, got 1: conv2d \(N, 4, 8, 8\)"),
    ],
    ids=["control flow", "shape", "woven", "one operation", "two outputs", "no logits"],
)
def test_what_cannot_be_cut_says_where_and_why_in_one_line(
    make: Callable[[], nn.Module], shape: tuple[int, ...], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        cut(make(), shape)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


# --- programs as files


def test_a_program_comes_back_as_it_was() -> None:
    for module, crossing in ((Residual(), 1), (Sizes(), 1), (Dense(), 2)):
        parts = cut(module, crossing=crossing)
        modules = [*parts.layers, parts.classifier]
        back = loaded(dumped(modules, "model"), "here")
        for old, new in zip(modules, back, strict=True):
            new.load_state_dict(old.state_dict())
        again = Partition(tuple(back[:-1]), parts.names, parts.shapes, back[-1])
        nn.ModuleList(back).eval()
        assert same(module, again)


def layer(**changes: object) -> bytes:
    plain = {
        "output": "s3",
        "weights": {"a.weight": {"shape": [4, 3]}, "a.bias": {"shape": [4]}},
        "steps": [
            {"name": "s1", "target": "weight a.weight"},
            {"name": "s2", "target": "weight a.bias"},
            {"name": "s3", "target": "aten.linear.default", "args": [{"step": "x"}, {"step": "s1"}, {"step": "s2"}]},
        ],
    }
    return msgspec.json.encode([{**plain, **changes}])


def step(target: str, *args: object, **kwargs: object) -> bytes:
    return layer(weights={}, output="s1", steps=[{"name": "s1", "target": target, "args": args, "kwargs": kwargs}])


def test_the_layer_that_the_next_test_spoils_is_one() -> None:
    (made,) = loaded(layer(), "here")
    assert made(torch.ones(2, 3)).shape == (2, 4)


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"[", b"{}", b"[1]", b"\xff", layer(output="s9"),
        layer(weights={'a"]; import os #': {"shape": [1]}}),
        layer(weights={"a.weight": {"shape": [-4, 3]}, "a.bias": {"shape": [4]}}),
        layer(weights={"a.weight": {"shape": [4, 3], "dtype": "load"}, "a.bias": {"shape": [4]}}),
        layer(weights={}),
        layer(parts={"a.weight": {"kind": "Linear"}}),
        step("aten.from_file.default", "/etc/passwd"),
        step("aten.linear"), step("aten.linear.nothing"), step("aten.__class__.mro"), step("os.system", "true"),
        step("operator.attrgetter", "x"), step("weight x"), step("prims.add.default", {"step": "x"}),
        step("aten.relu.default", {"step": "s7"}), step("aten.relu.default", {"dtype": "load"}),
        step("aten.relu.default", {"what": "x"}), step("aten.relu.default", {"step": "x"}, **{"a=1)": 1}),
    ],
)  # fmt: skip
def test_a_spoilt_or_hostile_program_is_one_line(raw: bytes) -> None:
    with pytest.raises(ArtifactError, match="here: expected layers of ATen operations") as caught:
        loaded(raw, "here")
    assert "\n" not in str(caught.value)


# --- networks by name


@pytest.mark.parametrize("spec", ["mobilenetv2", "small_resnet18", "small_vgg11", "resnet18"])
def test_a_network_by_name_is_rebuilt_from_its_description(spec: str) -> None:
    width = None if spec == "resnet18" else 0.125
    made = built(spec, input_shape=(3, 32, 32), classes=7, exits=3, width=width)
    assert len(made.network.exit_layers) == 3
    assert len(made.layer_names) == len(made.network.layers)
    description = msgspec.json.decode(msgspec.json.encode(made.description))
    back = rebuilt(description, made.files)
    back.load_state_dict(made.network.state_dict())
    x_NCHW = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for old, new in zip(made.network(x_NCHW), back.eval()(x_NCHW), strict=True):
            assert old.shape == (2, 7)
            assert torch.equal(old, new)
        torch.testing.assert_close(made.network(x_NCHW)[-1], made.whole(x_NCHW))


def test_the_seed_makes_the_weights_and_exits_are_where_they_were_asked_for() -> None:
    def made(seed: int) -> dict[str, Tensor]:
        network = built(
            "small_resnet18", input_shape=(1, 28, 28), classes=10, exits=[2, 5], width=0.125, seed=seed
        ).network
        assert network.exit_layers == (2, 5, 7)
        return dict(network.state_dict())

    first, again, other = made(0), made(0), made(1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_exits_by_number_stand_at_equal_shares_of_the_cost() -> None:
    assert built("mobilenetv2", input_shape=(1, 28, 28), classes=10).network.exit_layers == (1, 3, 5, 6, 8)
    even = built("small_resnet18", input_shape=(3, 32, 32), classes=10, exits=4, width=0.125).network.exit_layers
    assert len(even) == 4
    assert even[-1] == 7
    assert built(
        "small_resnet18", input_shape=(3, 32, 32), classes=10, exits=8, width=0.125
    ).network.exit_layers == tuple(range(8))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"spec": "resnet19"}, "model: expected mobilenetv2"),
        ({"spec": "nothing_here:x"}, "ModuleNotFoundError"),
        ({"spec": "math:pi"}, "not callable"),
        ({"spec": "math:sqrt"}, "TypeError"),
        ({"spec": "builtins:dict"}, "a factory that gives a torch.nn.Module, got dict"),
        ({"spec": "nothing.pt2"}, "torch.export.save"),
        ({"spec": "resnet18", "width": 0.5}, "width: expected none for resnet18"),
        ({"exits": [8]}, "exits: expected layers from 0 to 7, got 8"),
        ({"exits": 9}, "exits: expected 1 to 8"),
        ({"weights": "nothing.pt"}, "weights: expected a file"),
    ],
    ids=str,
)
def test_a_wrong_request_is_one_line(changes: dict[str, object], says: str, tmp_path) -> None:
    wanted = {"spec": "small_resnet18", "input_shape": (3, 32, 32), "classes": 10, **changes}
    if "weights" in wanted:
        wanted["weights"] = tmp_path / str(wanted["weights"])
    with pytest.raises(UsageError, match=says) as caught:
        built(**wanted)
    assert "\n" not in str(caught.value)


def test_weights_with_code_or_of_another_model_are_refused(tmp_path) -> None:
    class Code:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"a": Code()}, tmp_path / "code.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    for name, says in (
        ("code.pt", "state dict"),
        ("other.pt", "a state dict of small_resnet18"),
        ("noise.safetensors", "state dict"),
    ):
        with pytest.raises(UsageError, match=says) as caught:
            built("small_resnet18", input_shape=(3, 32, 32), classes=10, weights=tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "description", [{"kind": "exported"}, {"kind": "backbone", "name": "x"}, {"kind": "other"}, {}], ids=str
)
def test_a_description_without_what_it_needs_is_one_line(description: dict[str, object]) -> None:
    with pytest.raises(ArtifactError, match="model network") as caught:
        rebuilt(description, {})
    assert "\n" not in str(caught.value)
