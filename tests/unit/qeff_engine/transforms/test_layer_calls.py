"""How calls of layers are written down: which of them are the same code, and what each of them uses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qeff_engine.transforms import layer_calls
from qeff_engine.transforms.cache import RetainedCache
from qeff_engine.transforms.layer_numbers import LayerNumber, NoFit, NumberUsed
from qeff_engine.transforms.token_order import TokenOrder

SLOTS_BS = torch.zeros(1, 2, dtype=torch.int32)


class Slot:
    """The cache of a layer, which counts its uses."""

    def __init__(self):
        self.uses = 0

    def use(self):
        """Take one use."""
        self.uses += 1


class Attention(nn.Module):
    """Uses the cache of its number, shifted when it is told so."""

    def __init__(self, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x, cache, shift=0):
        cache.layers[self.layer_idx + shift].use()
        return x * self.weight


class Twofold(nn.Module):
    """Two attentions in a layer."""

    def __init__(self, number):
        super().__init__()
        self.layer_idx = number
        self.attentions = nn.ModuleList([Attention(2 * number), Attention(2 * number + 1)])

    def forward(self, x, cache):
        return self.attentions[1](self.attentions[0](x, cache), cache)


class Model(nn.Module):
    """Layers that are called one after another."""

    def __init__(self, layers, **arguments):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.arguments = arguments

    def forward(self, x, cache):
        for layer in self.layers:
            x = layer(x, cache, **self.arguments)
        return x


def cache_of(number):
    return RetainedCache([Slot() for _ in range(number)], order=TokenOrder(SLOTS_BS), positions_BS=SLOTS_BS, ctx_len=4)


def recorded(model, *, cache, num_caches=None):
    layers = layer_calls.find_layers(model, num_caches=num_caches or len(cache.layers))
    return layer_calls.record(lambda: model(torch.ones(3), cache), layers=layers)


def seen(sites):
    return [(site.path, site.caches, site.same_as) for site in sites]


def uses(cache):
    return [slot.uses for slot in cache.layers]


def test_layers_of_one_code_run_once_and_use_their_own_caches():
    cache = cache_of(3)
    sites = recorded(Model([Attention(number) for number in range(3)]), cache=cache)
    assert seen(sites) == [("layers.0", (0,), 0), ("layers.1", (1,), 0), ("layers.2", (2,), 0)]
    assert uses(cache) == [1, 0, 0]


def test_a_layer_may_use_several_caches():
    cache = cache_of(4)
    sites = recorded(Model([Twofold(0), Twofold(1)]), cache=cache)
    assert seen(sites) == [("layers.0", (0, 1), 0), ("layers.1", (2, 3), 0)]
    assert uses(cache) == [1, 1, 0, 0]


class Cycles(nn.Module):
    """Two stacks that are called in turn, each time with other caches."""

    def __init__(self):
        super().__init__()
        self.low = nn.ModuleList([Attention(0), Attention(1)])
        self.high = nn.ModuleList([Attention(0), Attention(1)])

    def forward(self, x, cache):
        for cycle, layers in enumerate([self.low, self.low, self.high]):
            for layer in layers:
                x = layer(x, cache, shift=2 * cycle)
        return x


def test_a_layer_may_be_called_again_with_another_cache():
    cache = cache_of(6)
    sites = recorded(Cycles(), cache=cache)
    assert [site.path for site in sites] == ["low.0", "low.1", "low.0", "low.1", "high.0", "high.1"]
    assert [site.caches for site in sites] == [(0,), (1,), (2,), (3,), (4,), (5,)]
    assert {site.same_as for site in sites} == {0}
    assert uses(cache) == [1, 0, 0, 0, 0, 0]


def test_caches_that_keep_other_things_make_calls_differ():
    layers = {f"layers.{number}": Attention(number) for number in range(3)}
    cache = cache_of(3)

    def run():
        for layer in layers.values():
            layer(torch.ones(3), cache)

    sites = layer_calls.record(run, layers=layers, kept=lambda number: number % 2)
    assert [site.same_as for site in sites] == [0, 1, 0]


class Repeated(Attention):
    """Repeats its result as often as it is told, in a way that does not ask the number itself."""

    def forward(self, x, cache, times=1):
        return torch.cat([super().forward(x, cache)] * int(times)).sum()


def test_a_number_that_finds_no_cache_is_compared():
    layers = {"one": Repeated(0), "two": Repeated(1), "three": Repeated(2)}
    cache = cache_of(3)

    def run():
        for layer, times in zip(layers.values(), (1, 2, 1), strict=True):
            layer(torch.ones(3), cache, times=times)

    sites = layer_calls.record(run, layers=layers)
    assert [site.same_as for site in sites] == [0, 1, 0]
    assert [site.caches for site in sites] == [(0,), (1,), (2,)]


class Computing(Attention):
    """Computes with its own number."""

    def __init__(self, layer_idx, compute):
        super().__init__(layer_idx)
        self.compute = compute

    def forward(self, x, cache):
        return self.compute(super().forward(x, cache), self.layer_idx)


@pytest.mark.parametrize(
    "compute",
    [
        lambda x, number: x / (number + 1),
        lambda x, number: x[:number].sum(),
        lambda x, number: x * float(number),
        lambda x, number: x if number else -x,
    ],
)
def test_layers_that_compute_with_their_number_differ(compute):
    cache = cache_of(2)
    sites = recorded(Model([Computing(0, compute), Computing(1, compute)]), cache=cache)
    assert seen(sites) == [("layers.0", (0,), 0), ("layers.1", (1,), 1)]
    assert uses(cache) == [1, 1]


class Giver(Attention):
    """Puts what it has into a mapping."""

    def forward(self, x, cache, shared):
        shared[self.key] = (super().forward(x, cache), self.weight)
        return x

    def __init__(self, layer_idx, key):
        super().__init__(layer_idx)
        self.key = key


class Taker(nn.Module):
    """Takes what an earlier layer has put there, if there is any."""

    def __init__(self, key):
        super().__init__()
        self.key = key

    def forward(self, x, cache, shared):
        return x + shared[self.key][0] if self.key in shared else x


def test_what_layers_pass_on_in_a_mapping_is_known():
    shared = {}
    layers = [Taker("a"), Giver(0, "a"), Giver(1, "a"), Taker("a"), Taker("a")]
    cache = cache_of(2)
    model = Model(layers, shared=shared)
    sites = recorded(model, cache=cache, num_caches=5)
    assert [site.same_as for site in sites] == [0, 1, 1, 3, 3]
    giver, taker = sites[1].call, sites[3].call
    assert [list(values) for values in giver.written.values()] == [["a"]]
    assert not giver.entries
    assert [tensor is shared["a"][0] for tensor in taker.tensors[1:]] == [True, False]
    assert not taker.written


class Curious(nn.Module):
    """Looks whether there is anything in a mapping."""

    def forward(self, x, cache, shared):
        return x + 1 if shared else x


def test_what_keys_a_mapping_has_is_compared_where_a_layer_asks_for_them():
    sites = recorded(
        Model([Curious(), Curious(), Giver(0, "a"), Giver(0, "a"), Curious()], shared={}),
        cache=cache_of(1),
        num_caches=5,
    )
    assert [site.same_as for site in sites] == [0, 0, 2, 2, 4]


class Remover(nn.Module):
    """Takes something out of a mapping."""

    def forward(self, x, cache, shared):
        return x + shared.pop("a", 0)


def test_a_layer_that_takes_entries_out_of_a_mapping_is_refused():
    with pytest.raises(NoFit, match="does more with a dict than to read and write entries"):
        recorded(Model([Remover()], shared={"a": 1}), cache=cache_of(1))


class Told(Attention):
    """Is told its number and has no use for it."""

    def forward(self, x, layer_idx, cache):
        return super().forward(x, cache)


def test_a_number_that_is_called_like_those_of_layers_and_not_used_is_not_compared():
    layers = {f"layers.{number}": Told(number) for number in range(2)}
    cache = cache_of(2)

    def run():
        layers["layers.0"](torch.ones(3), 0, cache)
        layers["layers.1"](torch.ones(3), 1, cache)

    assert seen(layer_calls.record(run, layers=layers)) == [("layers.0", (0,), 0), ("layers.1", (1,), 0)]


def test_no_layers_are_found_where_nothing_knows_a_number():
    with pytest.raises(NoFit, match="no list of 3 layers, and none whose layers know numbers"):
        layer_calls.find_layers(Model([nn.Linear(1, 1)]), num_caches=3)


def test_the_sum_of_numbers_of_layers_knows_where_it_is_from():
    number = 1 + LayerNumber(2, places=("layer_idx",)) + LayerNumber(4, places=(3,))
    assert (int(number), number.places) == (7, ("layer_idx", 3))


@pytest.mark.parametrize(
    "use",
    [
        lambda number: number * 2,
        lambda number: number - 1,
        lambda number: number + 0.5,
        lambda number: number == 2,
        lambda number: 1 if number else 0,
        lambda number: {number: 1},
        lambda number: number % 2,
        lambda number: [0, 1, 2].index(number),
    ],
)
def test_a_number_of_a_layer_is_for_nothing_else(use):
    with pytest.raises(NumberUsed) as refused:
        use(LayerNumber(2, places=("layer_idx",)))
    assert refused.value.places == {"layer_idx"}
