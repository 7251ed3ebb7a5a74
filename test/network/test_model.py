"""The whole network: shapes for any configuration, and outputs that are not requested are not computed."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from raymap3r_ros.errors import OptionError
from raymap3r_ros.network import PRESETS, Network, NetworkConfig, untrained_network
from raymap3r_ros.network.heads import decode_points

# Odd depths, portrait grids of odd sides, different heads on each side.
SMALL = NetworkConfig(
    image_size=80,
    patch_size=16,
    encoder_width=48,
    encoder_depth=3,
    encoder_heads=4,
    ray_encoder_depth=1,
    ray_encoder_heads=2,
    decoder_width=32,
    decoder_depth=5,
    decoder_heads=2,
    state_heads=8,
    state_tokens=11,
    memory_slots=3,
    memory_depth=1,
    memory_heads=2,
    modulation_depth=1,
    dpt_width=16,
    dpt_last_width=8,
    dpt_level_widths=(8, 8, 16, 16),
)


@pytest.mark.parametrize("head_type", ["dpt", "linear"])
@pytest.mark.parametrize("size", [(80, 48), (16, 112)])
def test_every_output_has_its_shape_and_is_finite(head_type: str, size: tuple[int, int]):
    network = untrained_network(dataclasses.replace(SMALL, head_type=head_type)).eval()
    grid = size[0] // 16, size[1] // 16
    batch = 2
    with torch.inference_mode():
        tokens = network.encode_image(torch.randn(batch, 3, *size))
        rays = network.encode_rays(torch.randn(batch, *size, 6))
        memory = network.initial_memory(batch)
        pose_token = network.read_memory(memory, rays)
        decoded = network.decode(tokens, grid, pose_token, network.initial_state(batch), want_attention=True)
        memory = network.write_memory(memory, tokens, decoded.pose_token)
        points, confidence = network.self_points(decoded, size)
        world_points, world_confidence = network.world_points(decoded, size)
        rgb, pose = network.rgb(decoded, size), network.pose(decoded)
    count = grid[0] * grid[1]
    assert tokens.shape == rays.shape == (batch, count, 48)
    assert memory.shape == (batch, 3, 64)
    assert decoded.state.shape == (batch, 11, 32)
    assert [q.shape for q, _ in decoded.attention] == [(batch, 8, 11, 4)] * 5
    assert [k.shape for _, k in decoded.attention] == [(batch, 8, 1 + count, 4)] * 5
    assert points.shape == world_points.shape == rgb.shape == (batch, *size, 3)
    assert confidence.shape == world_confidence.shape == (batch, *size)
    for output in (points, world_points, rgb, pose, memory):
        assert torch.isfinite(output).all()
    assert (confidence >= 1).all() and rgb.abs().max() <= 1
    torch.testing.assert_close(pose[:, 3:].norm(dim=1), torch.ones(batch))


def test_the_head_has_the_published_order():
    """Each fusion doubles the map and then mixes the channels of each pixel, in the contiguous (NCHW) layout."""
    network = untrained_network(SMALL).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.self_head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5
    levels = tuple(torch.randn(2, 15, width, generator=generator) for width in (48, 32, 32, 32))
    head, x = network.self_head, None
    with torch.inference_mode():
        result = head(levels, (5, 3), (80, 48))
        for level, fusion, tokens in list(zip(head.levels, head.fusion, levels, strict=True))[::-1]:
            planes = level(tokens, (5, 3)).contiguous()
            if x is None:
                x = planes
            else:
                x = x[..., : planes.shape[2], : planes.shape[3]] + fusion.skip_unit(planes)
            x = fusion.out(F.interpolate(fusion.unit(x), scale_factor=2, mode="bilinear", align_corners=True))
        x = F.interpolate(head.conv1(x), size=(80, 48), mode="bilinear", align_corners=True)
        torch.testing.assert_close(result, head.conv3(head.conv2(x).relu()), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(head.to(memory_format=torch.channels_last)(levels, (5, 3), (80, 48)), result)
    assert result.std() > 0.1


def test_points_and_confidence_follow_their_formulas():
    raw = torch.tensor([3.0, 0.0, -4.0, 0.5])[None, :, None, None].expand(1, 4, 2, 3)
    points, confidence = decode_points(raw.to(memory_format=torch.channels_last))
    expected = torch.tensor([0.6, 0.0, -0.8]) * math.expm1(5)
    torch.testing.assert_close(points, expected.expand(1, 2, 3, 3))
    torch.testing.assert_close(confidence, torch.full((1, 2, 3), 1 + math.exp(0.5)))


def test_hooks_follow_the_depth():
    assert NetworkConfig().hook_layers == (0, 6, 9, 12)
    assert SMALL.hook_layers == (0, 2, 3, 5)


def test_without_the_state_the_image_side_is_equal_and_the_last_state_block_is_skipped():
    network = untrained_network(SMALL).eval()
    tokens, pose_token, state = torch.randn(1, 15, 48), torch.randn(1, 1, 32), network.initial_state(1)
    runs = []
    network.decoder.state_blocks[-1].register_forward_hook(lambda *_: runs.append(1))
    with torch.inference_mode():
        whole = network.decode(tokens, (5, 3), pose_token, state)
        part = network.decode(tokens, (5, 3), pose_token, state, want_state=False)
    assert part.state is None and len(runs) == 1
    assert torch.equal(whole.levels[3], part.levels[3]) and torch.equal(whole.pose_token, part.pose_token)


def test_untrained_weights_depend_on_the_seed_alone():
    first, again, other = (untrained_network(SMALL, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["self_head.conv3.weight"], other["self_head.conv3.weight"])


def test_the_public_preset_has_the_parameters_of_the_paper():
    with torch.device("meta"):
        network = Network(PRESETS["cut3r_512_dpt"])
    # 793,307,858 in the file, minus the unused: two mask tokens and one residual unit of each of three heads.
    unused = 2 * 1024 + 3 * 2 * (256 * 256 * 9 + 256)
    assert sum(p.numel() for p in network.parameters()) == 793_307_858 - unused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_heads": 7}, "encoder: width 48 is not a multiple of 4 x 7 heads"),
        ({"state_heads": 16}, "state: width 32 is not a multiple of 4 x 16 heads"),
        ({"head_type": "mlp"}, "head_type is 'mlp'; it can be dpt, linear"),
        ({"decoder_depth": 1}, "the heads need at least 2 layers"),
    ],
)
def test_contradictory_configurations_are_refused(change: dict, message: str):
    with pytest.raises(OptionError, match=message):
        dataclasses.replace(SMALL, **change)
