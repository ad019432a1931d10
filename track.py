"""When is each object visible, and does it persist?

    python track.py --model tiny-tracker --data data/trajectories --out results/tiny/trajectories/tracks.pt
    python track.py --embeddings FILE --data data/trajectories                        # score any video model's tracks.pt

Runs a tracker on every object of clips (data.py trajectories) and on the absent one. tracks.pt holds for ids "<clip>/<object>"
fp16 embedding [N,512], scores [N,32] (probability that it is visible in a frame), attention [N,32] (sums to 1) and persistence [N]
(probability), and in meta the threshold of the scores, chosen on val. track.yaml beside it scores the test clips' objects:

    persistence_accuracy   baselines: how long it is visible (duration, threshold chosen on val), whether in both the first and the
                           last frame (ends), the clip's motion (energy), the majority answer
    frame_f1, _macro       of the frames in which it is visible, over all tracks together and the mean of tracks. Baselines: always
                           and clock (the majority of each frame in train). copy, the truth of one second earlier, is no baseline
                           of a model: it shows how well labels of earlier frames predict a frame
    segmental_f1_10 ... boundary_error   of the spans; boundary_error in frames
    absent_seen            the share of absent objects found visible in some frame
    attention_<how>_<what> how much more the output changes without the four frames of highest attention than without four others
                           (replaced by the clip's mean, or by their neighbours)

Copy with it: claims.py, cogvlm2.py, common.py, media.py, models.py, motion.py, stats.py, tracker.py,
checkpoints.py, models.yaml.
"""

import time
from pathlib import Path

import torch
from tqdm import tqdm

from claims import TIMES, load_tracks, trajectory_folder
from common import (
    TRACKS,
    check_writable,
    choose_device,
    fail,
    parser,
    print_summary,
    run_info,
    save_pt,
    save_yaml,
    split_indices,
    split_of,
)
from media import frames_of
from models import RATE, find_model
from motion import boundary_error, motion_energy, segmental_f1
from stats import criterion, holm, mean_and_interval, paired_test, ratio
from tracker import follow, load_tracker

EARLIER = int(RATE)  # frames: a second
DELETED = 4  # of 32 frames, to test whether the output depends on them


def follow_all(model, items, device, batch=32):
    """(ids, {output of `follow`, [N,...]}) of every object of the clips, their absent and their removed ones."""
    ids, found = [], []
    for start in tqdm(range(0, len(items), batch), desc="tracks", unit="batch"):
        part = items[start : start + batch]
        names = [[*i["names"], i["absent"], *filter(None, [i.get("removed")])] for i in part]
        longest = max(map(len, names))
        output = follow(
            model,
            torch.stack([frames_of(i, model.config["image_size"]) for i in part]),
            [n + n[-1:] * (longest - len(n)) for n in names],
            device,
        )
        real = torch.tensor([[k < len(n) for k in range(longest)] for n in names])
        ids += [f"{i['id']}/{n}" for i, row in zip(part, names, strict=True) for n in row]
        found.append({k: x[real] for k, x in output.items()})
    return ids, {k: torch.cat([f[k] for f in found]) for k in found[0]}


# ---------------------------------------------------------------- scores


def score_frames(truth, predicted, sources, seed):
    """(one row of the table, frame_f1 per track) of bool [n,T]: is the object visible?

    F1 of the frames over all tracks together (micro) and as the mean of tracks (macro); segmental F1; boundary error."""
    hits, either = 2 * (truth & predicted).sum(1).double(), (truth.sum(1) + predicted.sum(1)).double()
    pairs = list(zip(truth.int().tolist(), predicted.int().tolist(), strict=True))
    micro = ratio(hits, either)
    scores = {"frame_f1": micro, "frame_f1_macro": hits / either.clamp(min=1)}
    scores |= {
        f"segmental_f1_{at}": torch.tensor([segmental_f1(a, b, at / 100) for a, b in pairs])
        for at in (10, 25, 50)
    }
    row = {
        key: value for name, x in scores.items() for key, value in mean_and_interval(name, x, sources).items()
    }
    apart = torch.tensor([boundary_error(a, b) for a, b in pairs])
    at = (~apart.isnan()).nonzero().flatten().tolist()
    return row | mean_and_interval("boundary_error", apart[at], [sources[k] for k in at]), micro


def best_cut(x, truth):
    """(cut, sign +1 or -1) with the best accuracy of x * sign >= cut * sign; x [n], truth bool [n]."""
    found = [
        ((sign * x >= sign * cut) == truth).double().mean().item() for cut in x.unique() for sign in (1, -1)
    ]
    best = max(range(len(found)), key=found.__getitem__)
    return x.unique()[best // 2].item(), 1 - 2 * (best % 2)


def frames_of_track(track):
    """bool [T]: is it visible?"""
    seen = torch.zeros(TIMES, dtype=torch.bool)
    for a, b in track["visible"]:
        seen[a : b + 1] = True
    return seen


def frames_of_names(items, ids):
    """(rows, bool [n,T]: in which frames it is visible) of all objects of the clips; an absent one in none."""
    truth = {f"{i['id']}/{t['object']}": frames_of_track(t) for i in items for t in i["tracks"]} | {
        f"{i['id']}/{i['absent']}": torch.zeros(TIMES, dtype=torch.bool) for i in items
    }
    rows = [k for k, name in enumerate(ids) if name in truth]
    return rows, torch.stack([truth[ids[k]] for k in rows]) if rows else None


def best_threshold_of(scores, truth):
    """The threshold of scores in 0..1 [n,T] with the best F1 over all frames; truth bool [n,T]."""
    cuts = torch.arange(1, 20) / 20
    f1 = torch.stack([2 * (truth & (scores > c)).sum() / (truth.sum() + (scores > c).sum()) for c in cuts])
    return round(cuts[f1.argmax()].item(), 2)


def persistence_baselines(seen, predicted, energy, persistent):
    """{baseline: 0/1 of each test object}: from its duration, its visibility at both ends, or the clip's motion alone.

    seen (the truth), predicted (bool [n,T]), energy, persistent: {split: [n]}. Cuts are chosen on val, the majority
    on train. `true_duration` counts the truly visible frames, `duration` the predicted ones.
    """
    measures = {
        "duration": {s: x.sum(1).double() for s, x in predicted.items()},
        "true_duration": {s: x.sum(1).double() for s, x in seen.items()},
        "energy": energy,
    }
    correct = {
        "majority": persistent["test"] == (persistent["train"].double().mean() >= 0.5),
        "ends": (predicted["test"][:, 0] & predicted["test"][:, -1]) == persistent["test"],
    }
    for name, x in measures.items():
        cut, sign = best_cut(x["val"], persistent["val"])
        correct[name] = (sign * x["test"] >= sign * cut) == persistent["test"]
    return {name: x.double() for name, x in correct.items()}


def case_of(track):
    return (
        track["why"]
        if track["why"] != "stays"
        else "stays, hidden for a while"
        if track["hidden"]
        else "stays, seen throughout"
    )


def score_tracks(items, tracks, folder, seed):
    """(headline scalars, tables) of track.yaml that follow from tracks (of load_tracks, with all objects of the items)."""
    split, row_of = split_indices(items, folder), {name: k for k, name in enumerate(tracks["ids"])}
    objects = {
        s: [(items[k], t) for k in numbers.tolist() for t in items[k]["tracks"]]
        for s, numbers in split.items()
    }
    rows = {
        s: torch.tensor([row_of[f"{i['id']}/{t['object']}"] for i, t in these])
        for s, these in objects.items()
    }
    seen = {s: torch.stack([frames_of_track(t) for _, t in these]) for s, these in objects.items()}
    persistent = {s: torch.tensor([t["persistent"] for _, t in these]) for s, these in objects.items()}
    val_rows, frames = frames_of_names([items[k] for k in split["val"].tolist()], tracks["ids"])
    threshold = best_threshold_of(tracks["scores"][val_rows], frames)
    predicted = {s: tracks["scores"][r] > threshold for s, r in rows.items()}
    energies = motion_energy([i["frames"] for i in items]).tolist()
    energy_of = {i["id"]: x for i, x in zip(items, energies, strict=True)}
    energy = {
        s: torch.tensor([energy_of[i["id"]] for i, _ in these], dtype=torch.float64)
        for s, these in objects.items()
    }
    sources = [i["source"] for i, _ in objects["test"]]
    truth = seen["test"]
    correct = (tracks["persistence"][rows["test"]] > 0.5) == persistent["test"]

    baselines = persistence_baselines(seen, predicted, energy, persistent)
    predictions = {
        "tracker": predicted["test"],
        "always": torch.ones_like(truth),
        "clock": (seen["train"].double().mean(0) >= 0.5).expand_as(truth),
        "copy": torch.cat([truth[:, :1].expand(-1, EARLIER), truth[:, :-EARLIER]], 1),
    }
    table, f1 = {}, {}
    for name, x in predictions.items():
        table[name], f1[name] = score_frames(truth, x, sources, seed)
    criteria = {
        "persistence_accuracy": criterion(
            correct.double(), {n: x for n, x in baselines.items() if n != "true_duration"}, sources, seed=seed
        ),
        "frame_f1": criterion(f1["tracker"], {n: f1[n] for n in ("always", "clock")}, sources, seed=seed),
    }
    head = {}
    for (name, c), p in zip(
        criteria.items(), holm({n: c["p"] for n, c in criteria.items()}).values(), strict=True
    ):
        c["p_holm"] = p
        head |= {
            name: c["score"],
            f"{name}_low": c["low"],
            f"{name}_high": c["high"],
            **{
                f"{name}_{k}": c[k]
                for k in ("baseline", "baseline_name", "gain", "gain_low", "gain_high", "p_holm")
            },
        }
    for name, x in baselines.items():
        head |= mean_and_interval(f"persistence_{name}", x, sources)
    head |= {k: v for k, v in table["tracker"].items() if k not in head} | {
        f"frame_f1_{n}": table[n]["frame_f1"] for n in ("always", "clock", "copy")
    }
    over_copy = paired_test(f1["tracker"], f1["copy"], sources, seed=seed)
    absent = {True: [], False: []}  # does the clip hold another object of its colour?
    for item in (items[k] for k in split["test"].tolist()):
        if (row := row_of.get(f"{item['id']}/{item['absent']}")) is not None:
            absent[any(name.split()[0] == item["absent"].split()[0] for name in item["names"])].append(
                (tracks["scores"][row] > threshold).any().item()
            )
    alarms = {
        "absent_seen": sum(absent.values(), []),
        "absent_seen_colour_there": absent[True],
        "absent_seen_colour_not_there": absent[False],
    }
    head |= {
        "over_copy": over_copy["gain"],
        "over_copy_low": over_copy["gain_low"],
        "over_copy_high": over_copy["gain_high"],
        "copy_frames": EARLIER,
        "rate": RATE,
        "threshold": threshold,
        **{name: sum(x) / len(x) if x else None for name, x in alarms.items()},
        "objects": len(correct),
        "clips": len(split["test"]),
        "sources": len(set(sources)),
    }
    cases = {}
    for case in sorted({case_of(t) for _, t in objects["test"]}):
        these = torch.tensor([case_of(t) == case for _, t in objects["test"]])
        cases[case] = {
            "n": int(these.sum()),
            "persistence_accuracy": correct[these].double().mean().item(),
            "duration": baselines["duration"][these].mean().item(),
            "frame_f1": (
                2
                * (truth & predicted["test"])[these].sum()
                / (truth[these].sum() + predicted["test"][these].sum())
            ).item(),
        }
    return head, {"criteria": criteria, "frames": table, "cases": cases}


# ---------------------------------------------------------------- attention


def without_frames(clip, at, how):
    """A clip uint8 [T,...] with the frames `at` replaced by its mean image or by the nearest remaining frame."""
    stay = [t for t in range(len(clip)) if t not in at]
    new = clip.clone()
    for t in at:
        new[t] = (
            clip.float().mean(0).round().byte()
            if how == "mean"
            else clip[min(stay, key=lambda s: abs(s - t))]
        )
    return new


def faithfulness(model, items, device, seed, most=150, draws=5):
    """{how: paired tests}: does the output change more without the DELETED frames of highest attention than without random ones?

    The change of the persistence probability, and the mean change of the scores in the remaining frames (deletion:
    Samek et al. 2017; attention need not explain: Jain & Wallace 2019)."""
    g, found, sources = torch.Generator().manual_seed(seed), {}, []
    objects = [(i, name) for i in items for name in i["names"]][:most]
    for item, name in tqdm(objects, desc="frames left out", unit="object"):
        clip = frames_of(item, model.config["image_size"])
        base = {k: x[0, 0] for k, x in follow(model, clip[None], [[name]], device).items()}
        sets = [
            base["attention"].topk(DELETED).indices.tolist(),
            *(torch.randperm(len(clip), generator=g)[:DELETED].tolist() for _ in range(draws)),
        ]
        sources.append(item["source"])
        for how in ("mean", "neighbours"):
            new = follow(
                model,
                torch.stack([without_frames(clip, at, how) for at in sets]),
                [[name]] * len(sets),
                device,
            )
            stay = torch.stack([torch.tensor([t not in at for t in range(len(clip))]) for at in sets])
            change = {
                "persistence": (new["persistence"][:, 0] - base["persistence"]).abs(),
                "scores": ((new["scores"][:, 0] - base["scores"]).abs() * stay).sum(1) / stay.sum(1),
            }
            for key, x in change.items():
                found.setdefault((how, key), []).append((x[0].item(), x[1:].mean().item()))
    table = {}
    for (how, key), pairs in found.items():
        top, random = torch.tensor(pairs).T
        table.setdefault(how, {})[key] = {
            "highest": top.mean().item(),
            "random": random.mean().item(),
            **paired_test(top, random, sources, seed=seed),
        }
    for (how, key), p in holm({names: table[names[0]][names[1]]["p"] for names in found}).items():
        table[how][key]["p_holm"] = p
    return table | {"objects": len(objects), "frames_left_out": DELETED, "draws": draws}


def track_objects(args, started):
    """Write a tracker's tracks.pt for a folder of clips (or read --embeddings), and its scores, track.yaml."""
    folder = args.data
    entry = None if args.embeddings else find_model(args.model)
    if entry and entry["kind"] != "tracker":
        load_tracker(entry, None)  # fails with the list of trackers
    items, index = trajectory_folder(folder)
    path = Path(args.embeddings or args.out or f"results/{entry['name']}/{Path(folder).name}/tracks.pt")
    out = Path(args.out) if args.embeddings and args.out else path.with_name("track.yaml")
    for written in (out, *([] if args.embeddings else [path])):
        check_writable(written)
    scored = all(any(split_of(i["source"]) == s for i in items) for s in ("train", "val", "test"))
    info = {}
    faithful = {}
    if entry:
        device, dtype, why = choose_device()
        model = load_tracker(entry, device)
        config = model.config
        if unknown := [
            n
            for i in items
            for n in (*i["names"], i["absent"])
            if n.split()[0] not in config["colours"] or n.split()[-1] not in config["shapes"]
        ]:
            fail(f"{folder} has a {unknown[0]!r}, which {entry['path']} was not trained on; give other clips")
        started_at = time.time()
        ids, found = follow_all(model, items, device)
        seconds = (time.time() - started_at) / len(items)
        rows, truth = frames_of_names([i for i in items if split_of(i["source"]) == "val"], ids)
        threshold = best_threshold_of(found["scores"][rows].half().float(), truth) if rows else 0.5
        save_pt(
            path,
            TRACKS,
            ids,
            {
                "model": entry["name"],
                "weights": entry["weights"],
                "data": index["data"],
                "data_path": str(folder),
                "threshold": threshold,
                "threshold_from": "val" if rows else "default: the data has no val clips",
            },
            **{k: x.half() for k, x in found.items()},
        )
        info = {"seconds_per_clip": seconds, "parameters": sum(p.numel() for p in model.parameters())}
        if scored:
            faithful = faithfulness(
                model, [i for i in items if split_of(i["source"]) == "test"], device, args.seed
            )
            info |= {
                f"attention_{how}_{key}{end}": faithful[how][key][f"gain{end}"]
                for how in ("mean", "neighbours")
                for key in ("persistence", "scores")
                for end in ("", "_low", "_high")
            }
    tracks = load_tracks(path, items)
    missing = [
        n for i in items for name in i["names"] if (n := f"{i['id']}/{name}") not in set(tracks["ids"])
    ]
    if missing:
        fail(f"{path} lacks {missing[0]!r} and {len(missing) - 1} more; write it again for this --data")
    head, tables = (
        score_tracks(items, tracks, folder, args.seed)
        if scored
        else ({"clips": len(items), "unscored": f"{folder} has not all of train, val and test"}, {})
    )
    meta = tracks["meta"]
    result = {
        "stage": "track",
        "model": meta.get("model"),
        "weights": meta.get("weights", "unstated"),
        "data": index["data"],
        "data_name": index["name"],
        "tracks": str(path),
        **head,
        **info,
        **tables,
        **({"attention": faithful} if faithful else {}),
        "run": run_info(args, started, script="track.py"),
    }
    result = (
        {k: v for k, v in result.items() if not isinstance(v, dict)}
        | {"peak_memory_gb": result["run"]["peak_memory_gb"]}
        | {k: v for k, v in result.items() if isinstance(v, dict)}
    )
    save_yaml(out, result)
    print_summary(result)
    return result


def get_args(argv):
    p = parser(__doc__)
    add = p.add_argument
    add("--model", default="tiny-tracker", help="the tracker")
    add("--data", default="data/trajectories", help="clips of data.py trajectories")
    add("--embeddings", metavar="FILE", help="score this tracks.pt instead")
    add("--out", help="default: results/<model>/<data>/tracks.pt, or track.yaml")
    return p.parse_args(argv)


def main(argv=None):
    args, started = get_args(argv), time.time()
    return track_objects(args, started)


if __name__ == "__main__":
    main()
