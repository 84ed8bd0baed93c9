"""New branches: they fit their block, start as the zero function, and can be scripted."""

import pytest
import torch
from torch import nn

from archrepair_core.blocks import Block
from archrepair_core.export.weights import describe_layer
from archrepair_core.ingest.model import ingest_model
from archrepair_core.search.branches import build_branch
from archrepair_core.search.dag import Edge
from archrepair_core.search.genotype import Genotype, branch_beside, build_, in_place_of
from archrepair_core.search.primitives import FEATURE_PRIMITIVES, IMAGE_PRIMITIVES, TOKEN_PRIMITIVES, primitives_for


def block_of(input_shape, output_shape, name="body"):
    return Block(name, "Residual", input_shape, output_shape, 10, 10, 0.5, 0, "block")


@pytest.mark.parametrize("primitive", list(IMAGE_PRIMITIVES))
@pytest.mark.parametrize(
    ("entered", "left"),
    [((8, 6, 6), (8, 6, 6)), ((8, 6, 6), (16, 3, 3)), ((8, 7, 7), (16, 4, 4)), ((4, 5, 9), (6, 5, 9))],
)
def test_image_branches_bridge_channels_and_strides_and_start_at_zero(primitive, entered, left):
    branch = build_branch(block_of(entered, left), [Edge("input", "output", primitive)])
    out = branch(torch.randn(2, *entered))
    assert out.shape == (2, *left)
    assert not out.any()
    branch.scale.data.fill_(1.0)
    assert branch(torch.randn(2, *entered)).any()


@pytest.mark.parametrize(
    ("shape", "primitive"),
    [((12,), primitive) for primitive in FEATURE_PRIMITIVES] + [((5, 12), primitive) for primitive in TOKEN_PRIMITIVES],
)
def test_feature_branches_serve_vectors_and_tokens(shape, primitive):
    branch = build_branch(block_of(shape, (*shape[:-1], 8)), [Edge("input", "output", primitive)])
    out = branch(torch.randn(3, *shape))
    assert out.shape == (3, *shape[:-1], 8)
    assert not out.any()


def test_a_block_no_branch_can_bridge_is_offered_none():
    assert primitives_for(block_of((8, 6, 6), (10,))) == {}
    assert primitives_for(block_of((8, 6, 6), (8, 3, 6))) == {}
    assert primitives_for(block_of((5, 12), (6, 12))) == {}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("primitive", list(IMAGE_PRIMITIVES))
def test_a_built_genotype_computes_the_same_function_and_scripts(primitive):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())).eval()
    x = torch.randn(2, 3, 8, 8)
    before = model(x)
    blocks = {"1": block_of((8, 6, 6), (8, 6, 6), name="1")}
    build_(model, Genotype(("1",), (branch_beside("1", primitive),)), blocks, seed=3)
    assert torch.equal(model(x), before)
    assert torch.allclose(torch.jit.script(model)(x), before, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_with_a_skip_connection_in_its_place_a_block_is_gone():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())).eval()
    x, blocks = torch.randn(2, 3, 8, 8), {"1": block_of((8, 6, 6), (8, 6, 6), name="1")}
    without = model[0](x)
    build_(model, Genotype(("1",), (in_place_of("1", "skip_connect"),)), blocks, seed=3)
    assert torch.equal(model(x), without)
    assert torch.equal(torch.jit.script(model)(x), without)


def test_building_twice_with_one_seed_gives_the_same_weights_and_leaves_the_random_state_alone():
    blocks = {"0": block_of((8, 6, 6), (8, 6, 6), name="0")}
    genotype = Genotype(("0",), (branch_beside("0", "bottleneck"),))
    state = torch.random.get_rng_state()
    one, two = _two_builds(genotype, blocks)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(torch.random.get_rng_state(), state)


def _two_builds(genotype, blocks):
    models = [nn.Sequential(nn.Sequential()) for _ in range(2)]
    for model in models:
        model[0].register_parameter("weight", nn.Parameter(torch.zeros(1)))
    return [build_(model, genotype, blocks, seed=9).state_dict() for model in models]


def test_a_genotype_is_plain_data_with_a_readable_name():
    genotype = Genotype(("layer1.0",), (branch_beside("layer1.0", "bottleneck"),))
    assert genotype.name == "layer1.0 + bottleneck"
    assert genotype.to_json() == {
        "scope": ["layer1.0"],
        "start": "original",
        "align": 0.0,
        "edits": [
            {
                "block": "layer1.0",
                "edges": [
                    {"from": "input", "to": "output", "operation": "original"},
                    {"from": "input", "to": "output", "operation": "bottleneck"},
                ],
            }
        ],
    }
    assert Genotype.from_json(genotype.to_json()) == genotype
    assert Genotype(("",)).name == "network"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("shape", "primitive"),
    [
        ((8, 6, 6), name)
        for name in ("squeeze_excite", "instance_norm", "depthwise_conv_5x5", "average_pool", "max_pool")
    ]
    + [((5, 12), name) for name in ("norm", "token_mix")],
)
def test_a_saved_branch_can_be_read_back_and_is_still_editable(shape, primitive, tmp_path):
    torch.manual_seed(0)
    branch = build_branch(block_of(shape, shape), [Edge("input", "output", primitive)])
    branch.scale.data.normal_()
    torch.jit.script(nn.Sequential(branch)).save(tmp_path / "branch.pt")
    again = ingest_model(tmp_path / "branch.pt", tmp_path).model.eval()
    x = torch.randn(2, *shape)
    torch.testing.assert_close(again(x), branch(x))
    assert list(again.state_dict()) == [f"0.{key}" for key in branch.state_dict()]
    assert [describe_layer(layer) for layer in branch.operation.children()]
    again.train()(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in again.parameters())
