"""Measures of boxes, masks, images and clips: null values, hand-computed cases, reference implementations."""

import urllib.error
from unittest import mock

import pytest
import torch
from helpers import generator

import media
import metrics
import stats

A, B, FAR, NEAR = [10.0, 10, 50, 50], [100.0, 100, 180, 160], [400.0, 400, 440, 440], [12.0, 10, 52, 50]
# IoU with A: 39 / 41, 28 / 52, 26 / 54
BETWEEN, HALF, LESS = [11.0, 10, 51, 50], [22.0, 10, 62, 50], [24.0, 10, 64, 50]
HAND_MADE = {  # name: (truth, found per image: box, class, score; stats[1] of pycocotools' COCOeval)
    "an image without truth": ([[(A, 0)], []], [[(A, 0, 0.9)], [(A, 0, 0.95)]], 0.5),
    "a surer duplicate": ([[(A, 0)], [(B, 0)]], [[(A, 0, 0.9), (A, 0, 0.8)], [(B, 0, 0.5)]], 253 / 303),
    "ties across images": ([[(A, 0)], [(B, 0)]], [[(FAR, 0, 0.5)], [(B, 0, 0.5), (FAR, 0, 0.5)]], 25.5 / 101),
    "the wrong name": ([[(A, 0), (B, 1)]], [[(A, 1, 0.9), (B, 1, 0.8)]], 0.25),
    "one box that could be two": ([[(A, 0), (NEAR, 0)]], [[(BETWEEN, 0, 0.9), (BETWEEN, 0, 0.9)]], 1),
    "an overlap of half and of less": ([[(A, 0)], [(A, 0)]], [[(HALF, 0, 0.9)], [(LESS, 0, 0.8)]], 51 / 101),
}


def test_iou_of_hand_computed_boxes_and_masks():
    a = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2], [1, 1, 1, 1], [2, 2, 0, 0]])
    b = torch.tensor([[3.0, 3, 4, 4], [1, 1, 3, 3], [0, 0, 2, 2], [0, 0, 2, 1], [1, 1, 1, 1], [0, 0, 2, 2]])
    torch.testing.assert_close(metrics.box_iou(a, b), torch.tensor([0, 1 / 7, 1, 0.5, 0, 0]))
    torch.testing.assert_close(metrics.giou_loss(a[:3], b[:3]), torch.tensor([27 / 16, 1 - 1 / 7 + 2 / 9, 0]))
    a, b = torch.zeros(2, 4, 4, 4, dtype=torch.bool)  # empty, disjoint, one row of three in common, equal
    a[1:, :2], b[1, 2:], b[2, 1:3], b[3, :2] = True, True, True, True
    torch.testing.assert_close(metrics.mask_iou(a, b), torch.tensor([1.0, 0, 1 / 3, 1]))


@pytest.mark.parametrize("case", HAND_MADE)
def test_ap50_is_that_of_pycocotools_on_hand_made_cases(case):
    def tensors(image):
        boxes, *rest = zip(*image, strict=True) if image else ((), ())
        return (torch.tensor(boxes).reshape(-1, 4), *(torch.tensor(x) for x in rest))

    truth, found = ([tensors(image) for image in images] for images in HAND_MADE[case][:2])
    assert metrics.coco_ap50(truth, found)[0] == pytest.approx(HAND_MADE[case][2], abs=1e-12)


def test_a_match_with_a_crowd_is_neither_a_hit_nor_a_mistake_and_an_image_without_boxes_counts():
    box, crowd, name = torch.tensor([A]), torch.tensor([FAR]), torch.tensor([0])
    found = [(torch.cat([crowd, box]), torch.tensor([0, 0]), torch.tensor([0.9, 0.8]))]
    assert metrics.coco_ap50([(box, name)], found)[0] == pytest.approx(0.5)
    assert metrics.coco_ap50([(box, name, (crowd, name))], found)[0] == pytest.approx(1)
    assert metrics.coco_ap50([(box, name, (crowd, name + 1))], found)[0] == pytest.approx(0.5)
    empty, wrong = (box[:0], name[:0]), (box, name, torch.tensor([0.95]))
    assert metrics.coco_ap50([(box, name, (crowd, name)), empty], [*found, wrong])[0] == pytest.approx(0.5)


def test_the_truth_of_an_image_without_boxes_is_empty_and_a_crowd_stands_apart():
    item = {"width": 40, "height": 20, "boxes": torch.zeros(0, 4), "labels": []}
    other = item | {"boxes": torch.tensor([[0.0, 0, 20, 20]]), "labels": ["a"]}
    other |= {"crowd": torch.tensor([[20.0, 0, 40, 20]] * 2), "crowd_labels": ["b", "a"]}
    largest, truth, names = metrics.box_truth([item, other])
    assert largest.tolist() == [[0, 0, 0, 0], [0, 0, 0.5, 1]] and names == ["a"]
    assert [len(column) for column in truth[0]] == [0, 0] and truth[0][1].dtype == torch.long
    assert truth[1][2][0].tolist() == [[0.5, 0, 1, 1]] and truth[1][2][1].tolist() == [0]
    assert metrics.with_boxes({"val": torch.tensor([0, 1])}, largest)["val"].tolist() == [1]


def test_the_pseudo_values_of_ap_are_of_sources_and_their_mean_is_that_of_all_images():
    boxes, names = torch.tensor([A, B]), torch.tensor([0, 1])
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0)
    found = [nothing if i % 20 >= 10 else (boxes, names, torch.ones(2)) for i in range(60)]  # ten by ten
    truth = [(boxes, names)] * 60
    alone, together = (metrics.coco_ap50(truth, found, s) for s in (None, [i // 10 for i in range(60)]))
    assert alone[0] == together[0] == pytest.approx(51 / 101)  # 51 of 101 levels of recall
    assert (
        len(alone[1]) == 60
        and len(together[1]) == 6
        and together[1].mean() == pytest.approx(51 / 101, abs=0.05)
    )
    width = [
        low - high
        for _, high, low in (stats.mean_interval(x, range(len(x))) for x in (alone[1], together[1]))
    ]
    assert width[1] > 2 * width[0]  # sqrt(10) = 3.2, and Student's t


def test_the_interval_of_map_spans_runs_that_differ():
    """Runs that find 9 ... 13 of the 20 boxes of every source: only the mean over seeds is uncertain."""
    box, far, name = torch.tensor([A]), torch.tensor([FAR]), torch.tensor([0])
    runs, sources = [], [i // 20 for i in range(200)]
    for hits in range(9, 14):
        found = [
            (box if i % 20 < hits else far, name, torch.tensor([0.5 - i % 20 / 100])) for i in range(200)
        ]
        whole, values = metrics.coco_ap50([(box, name)] * 200, found, sources)
        assert whole == pytest.approx(hits / 20, abs=0.01)
        runs.append(values)
    record = stats.criterion(torch.stack(runs), {"constant": torch.zeros(5, 10)}, range(10))
    found = [record[key] for key in ("low", "score", "high")]
    assert found == pytest.approx([0.45, 0.55, 0.65], abs=0.01)


def test_cells_put_back_together_are_the_maps():
    maps = torch.rand(3, 2, 4 * 6, 5 * 6, generator=generator())
    cells = metrics.to_cells(maps, 4, 5)  # [1, 7]: row 1, column 2
    torch.testing.assert_close(cells[1, 7].reshape(2, 6, 6), maps[1, :, 6:12, 12:18])
    back = metrics.from_cells(metrics.to_cells(maps[..., :24], 4, 4), 4, 4, 2, 24)
    torch.testing.assert_close(back, maps[..., :24])


def test_the_threshold_of_masks_is_chosen_on_val_and_not_on_test():
    truth = torch.zeros(20, 8, 8, dtype=torch.bool)
    truth[:, :4] = True
    soft = torch.where(truth, 0.3, 0.12)
    split = {"val": torch.arange(10), "test": torch.arange(10, 20)}
    assert metrics.mask_scores(soft, truth, split).mean() == 1
    soft[10:] = torch.where(truth[10:], 0.12, 0.05)  # a threshold of 0.1 would find them
    assert metrics.mask_scores(soft, truth, split)[10:].mean() == 0


def test_the_largest_box_and_the_foreground_are_fractions_of_the_image():
    boxes = torch.tensor([[0.0, 0, 4, 4], [20, 10, 40, 20]])
    item = {"width": 40, "height": 20, "boxes": boxes, "labels": ["b", "a"]}
    largest, every, names = metrics.box_truth([item])
    assert largest.tolist() == [[0.5, 0.5, 1, 1]] and names == ["a", "b"] and every[0][1].tolist() == [1, 0]
    mask = torch.zeros(20, 40)
    mask[:10, :20] = 7  # a mask comes before the boxes
    found = media.foreground([item, item | {"mask": mask}], 2)
    torch.testing.assert_close(found, torch.tensor([[[16 / 200, 0], [0, 1]], [[1, 0], [0, 0]]]))


def images(n=2, side=48, seed=0):
    return torch.randint(0, 256, (n, side, side, 3), generator=generator(seed)).byte()


def bars(*columns, side=64):
    """One image [1, side, side, 3] that changes between black and white at the given columns."""
    x = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    for k, column in enumerate(columns):
        x[:, :, column:] = 255 * (1 - k % 2)
    return x


def test_ssim_of_noise_is_about_0_and_edge_f1_forgives_one_pixel_and_matches_one_to_one():
    assert metrics.ssim(images(), images(seed=1)).abs().max() < 0.1
    assert metrics.ssim(images(), images()).tolist() == [1, 1]
    assert [metrics.edge_f1(bars(column), bars(32)).item() for column in (32, 33, 38)] == [1, 1, 0]
    assert metrics.edge_f1(bars(34), bars(32)).item() < 0.5
    wide = {"side": 448}  # 4 px there, 2 at 224
    assert [metrics.edge_f1(bars(c, **wide), bars(32, **wide)).item() for c in (36, 38)] == [1, 0]
    assert metrics.edge_f1(bars(), bars(32)).item() == metrics.edge_f1(bars(32), bars()).item() == 0
    true = bars(112, side=224)
    true[:, :, 112] = 127  # a grey column: an edge one pixel wide
    assert metrics.edge_f1(true, true).item() == metrics.edge_f1(bars(), bars()).item() == 1
    assert metrics.edge_f1(bars(111, 114, side=224), true).item() == pytest.approx(
        2 / 3, abs=0.05
    )  # one to many: 1


def test_lpips_is_that_of_the_package_and_without_its_backbone_has_another_name(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", mock.Mock(side_effect=urllib.error.URLError("no network")))
    state = torch.random.get_rng_state()
    (model, _), (distance, name) = metrics.lpips_model(), metrics.load_lpips()
    assert name == "lpips_random_backbone" and torch.equal(state, torch.random.get_rng_state())
    a, b = images(side=64), images(side=64, seed=1)
    x, y = (z.permute(0, 3, 1, 2) / 127.5 - 1 for z in (a, b))
    theirs, close = model(x, y).flatten(), {"atol": 1e-6, "rtol": 1e-5}
    ours = metrics.lpips_to(model, x, metrics.lpips_features(model, y))
    torch.testing.assert_close(torch.stack([ours, distance(a, b).float()]), theirs.repeat(2, 1), **close)
    assert distance(a, a).abs().max() == 0 < theirs.min()
