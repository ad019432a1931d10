"""Trained and closed-form probes: null first, then planted content."""

import pytest
import torch
from helpers import generator
from test_metrics import BETWEEN, FAR, A
from test_probe import BOXES, IDS, SPLIT, N, boxes_of

import metrics
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


def scattered(n, count, classes=3, seed=0):
    """Truth of n images with `count` disjoint boxes whose sides are 0.08 ... 0.25 of the image."""
    g, truth = generator(seed), []
    for _ in range(n):
        boxes = torch.zeros(0, 4)
        while len(boxes) < count:
            size = torch.rand(2, generator=g) * 0.17 + 0.08
            low = torch.rand(2, generator=g) * (1 - size)
            box = torch.cat([low, low + size])
            if metrics.box_areas(box, boxes)[0].sum() == 0:
                boxes = torch.cat([boxes, box[None]])
        truth.append((boxes, torch.randint(classes, (count,), generator=g)))
    return truth


def parts_of(n):
    return torch.arange(n).split([round(0.6 * n), round(0.2 * n), n - round(0.6 * n) - round(0.2 * n)])


@pytest.mark.slow
def test_the_set_probe_finds_twelve_true_objects_an_image_and_shuffled_labels_or_places_none():
    truth = scattered(300, 12)
    train, val, test = parts_of(300)
    oracle = probes.oracle_tokens(truth, 3, (16, 16))
    order = torch.randperm(240, generator=generator()).tolist() + list(range(240, 300))
    place = oracle[train].mean(0).expand_as(oracle)
    jobs = [(oracle, truth, False), (oracle, [truth[i] for i in order], False), (place, truth, False)]
    predict = probes.train_set_probe(jobs, 3, train, val, seeds=2)
    ap = probes.ap_runs(predict, truth, test, [0] * 60).mean(1)
    assert ap[:2].min() >= 0.95 and ap[2:].max() < 0.05, ap


@pytest.mark.parametrize("softplus", [False, True])
def test_the_set_probe_reads_the_native_grid_and_not_pooled_tokens(softplus):
    """Images with one object, at token (0, 0) or (3, 3) of 24 x 24: pooled to 6 x 6 they are the same."""
    corner = torch.arange(60) % 2
    x = torch.zeros(60, 24, 24, 4)
    x[torch.arange(60), 3 * corner, 3 * corner] = torch.tensor([1.0, 2, 0, -1])
    x = x + 0.01 * torch.randn(x.shape, generator=generator())
    boxes = torch.tensor([[0.0, 0, 4, 4], [2, 2, 6, 6]]) / 24
    truth = [(boxes[k, None], torch.tensor([0])) for k in corner]
    pooled = torch.nn.functional.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), 6).permute(0, 2, 3, 1)
    train, val, test = parts_of(60)
    jobs = [(x, truth, softplus), (pooled, truth, softplus)]
    predict = probes.train_set_probe(jobs, 1, train, val, seeds=2, steps=300)
    ap = probes.ap_runs(predict, truth, test, [0] * 12).mean(1)
    assert ap[:2].min() > 0.95 and ap[2:].max() < 0.8, ap


def test_seeds_differ_jobs_share_no_weight_and_other_tokens_are_other_predictions():
    truth = scattered(40, 2)
    train, val, test = parts_of(40)
    x = probes.oracle_tokens(truth, 3, (8, 8))
    wrong = [(boxes + 0.3, names) for boxes, names in truth]
    jobs = [(x, truth, False), (x[..., :5], truth, False), (x, truth, True), (x, wrong, False)]
    predict = probes.train_set_probe(jobs, 3, train, val, seeds=2, steps=120)
    boxes, names, scores = predict(test)
    assert boxes.shape == (8, 8, 25, 4) and names.shape == scores.shape == (8, 8, 25)
    for a, b in ((0, 1), (0, 2), (0, 4), (0, 6)):
        assert (boxes[a] - boxes[b]).abs().max() > 1e-3
    few = [
        probes.train_set_probe(some, 3, train, val, seeds=2, steps=3)(test)[0] for some in (jobs[:1], jobs)
    ]
    torch.testing.assert_close(few[0], few[1][:2], atol=1e-3, rtol=0)  # jobs share no weight
    predict = probes.train_set_probe(jobs[:1], 3, train, val, seeds=2, steps=120)
    other = predict(torch.arange(3), tokens=x[5:8])
    torch.testing.assert_close(other[0], predict(torch.arange(5, 8))[0])


def test_attention_is_a_softmax_of_scores_and_gaussians_also_in_parts(monkeypatch):
    model, g = probes.SetProbe(4, 2, 5, 3), generator()
    for weight in (model.score, model.offset):
        torch.nn.init.normal_(weight, generator=g)
    x = torch.randn(6, 7, 5, 4, generator=g)
    centres = probes.token_centres(7, 5)
    far = (model.reference + model.offset / 5)[:, :, None] - centres  # [runs, Q, K, 2]
    logits = torch.einsum("nkd,rdo->nrok", x.flatten(1, 2), model.score)
    attention = (logits - (far * 5 / model.log_width[..., None].exp()).square().sum(-1) / 2).softmax(-1)
    places = torch.cat([centres, centres.square()], -1).expand(6, -1, -1)
    wanted = torch.einsum("nrqk,nkd->rnqd", attention, torch.cat([x.flatten(1, 2), places], -1))
    for most in (probes.ATTENTION, 200):
        monkeypatch.setattr(probes, "ATTENTION", most)
        found = model.attend_in_parts(x, torch.arange(3))
        torch.testing.assert_close(found, wanted)
        grads = [
            torch.autograd.grad(z.square().sum(), model.score, retain_graph=True)[0] for z in (found, wanted)
        ]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)  # sums in another order


def test_there_are_queries_for_the_fullest_image_and_four_for_each_mean_object():
    def truth(*counts):
        return [(torch.zeros(count, 4), torch.zeros(count)) for count in counts]

    sides = [probes.queries_per_side(truth(*counts)) for counts in ((1, 0), (12,) * 9, (100, 4, 7))]
    assert sides == [5, 7, 13]


def test_a_surer_box_of_its_class_suppresses_another():
    boxes = torch.tensor([[[A, BETWEEN, A, FAR]]])
    scores = probes.without_duplicates(
        boxes, torch.tensor([[[0, 0, 1, 0]]]), torch.tensor([[[0.5, 0.9, 0.3, 0.2]]])
    )
    assert scores[0, 0].tolist() == pytest.approx([0, 0.9, 0.3, 0.2])


def test_oracle_tokens_hold_class_and_box_of_the_smallest_object_over_their_centre():
    boxes = torch.tensor([[0.0, 0, 1, 1], [0.0, 0, 0.5, 0.5]])
    x = probes.oracle_tokens(
        [(boxes, torch.tensor([0, 1])), (boxes[:0], torch.zeros(0, dtype=torch.long))], 2, (4, 4)
    )
    assert x[0, 0, 0].tolist() == [0, 1, 0, 0, 0.5, 0.5] and x[0, 3, 1].tolist() == [1, 0, 0, 0, 1, 1]
    assert x.shape == (2, 4, 4, 6) and not x[1].any()


def test_principal_tokens_keep_what_varies_in_half_precision():
    code = torch.randn(30, 5, 4, 3, generator=generator())
    x = 50 + code @ torch.randn(3, 90, generator=generator(1))
    lazy = stats.Lazy(lambda rows: x[rows], 30)
    found = probes.principal_tokens(lazy, torch.arange(20), 8)
    assert found.shape == (30, 5, 4, 8) and found.dtype == torch.float16
    features = torch.cat([found.float().flatten(0, 2), torch.ones(600, 1)], 1)
    fit = features @ torch.linalg.lstsq(features, code.flatten(0, 2)).solution
    assert (fit - code.flatten(0, 2)).abs().max() < 0.05
    torch.testing.assert_close(probes.principal_tokens(x, torch.arange(20), 8), found)


def test_set_loss_is_lowest_for_the_true_boxes_in_any_order():
    boxes = torch.tensor([[[[0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.8], [0, 0, 0.1, 0.1]]]])
    logits = torch.tensor([[[[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0]]]])
    truth = [(boxes[0, 0, :2], torch.tensor([0, 1]))]
    swapped = [(boxes[0, 0, [1, 0]], torch.tensor([1, 0]))]
    best, same = (
        probes.set_loss(boxes, logits, *probes.padded_truth([t], 2)).item() for t in (truth, swapped)
    )
    assert best == pytest.approx(same) and best < 0.01
    wrong = logits.clone()
    wrong[0, 0, 2] = torch.tensor([9.0, 0, 0])  # a false box: weight 0.1, that of `nothing`
    found = probes.set_loss(boxes, wrong, *probes.padded_truth([truth], 2)).item()
    assert found == pytest.approx(0.1 * 9 / 2.1, abs=0.01)
