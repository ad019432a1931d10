"""Trained and closed-form probes: null first, then planted content."""

import pytest
import torch
from helpers import generator
from test_probe import BOXES, IDS, SPLIT, N, boxes_of

import probes
import stats
from metrics import box_iou


def test_an_mlp_reads_planted_boxes_that_are_not_linear_and_nothing_from_noise():
    boxes, (train, val, test) = boxes_of(n=240) / 32, torch.arange(240).split([144, 48, 48])
    split = {"train": train, "val": val, "test": test}
    constant = box_iou(boxes[train].median(0).values, boxes[test]).mean().item()
    found = probes.train_mlp(torch.randn(1, 240, 64, generator=generator(3)), boxes, split, seeds=2)
    assert box_iou(found[0][:, test], boxes[test]).mean() < constant + 0.03
    x = torch.randn(240, 2, generator=generator(5))  # the sign of a product: one of two places
    boxes = torch.tensor([[0.6, 0.6, 1, 1], [0.0, 0, 0.4, 0.4]])[(x.prod(1) > 0).long()]
    linear = stats.ridge(x, {"y": boxes}, train, range(240))["y"].clamp(0, 1)
    found = probes.train_mlp(x[None], boxes, split, seeds=2)
    assert box_iou(linear, boxes)[test].mean() < 0.2 < 0.55 < box_iou(found[0], boxes)[:, test].mean()


def test_layers_and_seeds_trained_together_equal_those_trained_alone_and_stop_early():
    x = torch.randn(3, N, 6, generator=generator(7))
    together = probes.train_mlp(x, BOXES, SPLIT, seeds=2, steps=40)
    for k in range(3):
        for seed in range(2):
            alone = probes.train_mlp(x[k : k + 1], BOXES, SPLIT, seeds=2, steps=40, only=seed)[0, 0]
            torch.testing.assert_close(together[k, seed], alone, atol=2e-3, rtol=0)
    weights, goal = {"w": torch.zeros(2, 1)}, torch.tensor([1.0, -1.0])  # of train; that of val is the start
    split = {"train": torch.arange(10), "val": torch.arange(10, 20)}

    def loss_of(items):
        return (weights["w"][:, 0] - goal * (items < 10).all()).square()

    probes.fit(weights, loss_of, split, 200, 1e-2, 5, generator())
    assert 0 < weights["w"].abs().max() < 0.3


def test_principal_components_hold_what_a_ridge_reads_and_tokens_have_one_size():
    x = torch.randn(N, 30, generator=generator(1)) @ torch.randn(30, 400, generator=generator(2))
    train, y = SPLIT["train"], x[:, :3].contiguous()
    parts = probes.components(*stats.spectrum(stats.gram(x, train)[None], train), most=40)[0]
    assert parts.shape == (N, 40) and parts.square().mean() == pytest.approx(1, rel=1e-4)
    found = [stats.ridge(z, {"y": y}, train, IDS)["y"] for z in (parts, x)]
    torch.testing.assert_close(*found, atol=0.02, rtol=0.02)
    x = torch.randn(40, 12, 12, 300, generator=generator(1))
    tokens, grid = probes.token_components(x, torch.arange(30), 6)
    assert tokens.shape == (40, 36, probes.TOKEN) and grid == (6, 6) and tokens.isfinite().all()
    assert probes.token_components(x[:, :2, :3, :8], torch.arange(30), 6)[1] == (2, 3)
