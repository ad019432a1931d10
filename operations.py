"""Which work step is being done? OpenPack: its reader and split, and what vision-language models answer.

    python operations.py draw --out data/operations-raw --seed 42         a made-up set in OpenPack's own layout
    python operations.py read --root data/operations-raw --seed 42        clips, with what is done at the end of each
    python operations.py score --models tiny results/tiny/operations/tuned/model

`read` writes data/operations/, items as data.py's and beside them: operation (at the clip's last frame), next, previous, earlier (a
second before); start, end, seconds (s from the last frame; how long the session has lasted); boundary (ends within a second of a
change), fixed (one of the first 30 clips of U0108, the fixed test), subject, fps. The split is by subject, the source a session.
index.yaml holds in `grammar` what the labels of train say without an image.

`score` asks models (the base first, what tune.py made of it last) what is done now, since when, until when, and what is next. An
answer that is no JSON is wrong, and where no time is given it is "now". operations.yaml has of the last model:

    macro_f1, accuracy     of the operation now, beside majority, clock (train's most frequent of those ten seconds of a session) and
                           bigram (what follows the true operation before most often); copy says what was true a second earlier, which is
                           nearly always right, so it is no baseline; _fixed: of the fixed test
    next_accuracy          beside majority and bigram (what follows the true operation most often)
    start_error, end_error seconds off, on the mean, beside median: train's
    segmental_f1_10 ... boundary_error   of a session's clips in a row, the session being the unit; boundary_error in seconds
    answer                 PASS: macro_f1 is above the base's and every baseline's by an interval of the paired difference, sessions
                           resampled; FAIL: surely not; or INCONCLUSIVE
    pair                   the operations confused most, and how many of these clips end at a change

operations.png shows what was answered for each operation, and frames of clips of that pair.

Modules, to be copied with it: cogvlm2.py, common.py, conversations.py, media.py, metrics.py, models.py,
stats.py, synthetic.py.
"""

import csv
import io
import itertools
import json
import re
import sys
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from tqdm import tqdm

from common import (
    ANSWERS,
    Items,
    check_writable,
    choose_device,
    digest,
    load_pt,
    load_yaml,
    positive,
    refuse,
    run_info,
    save_bytes,
    save_yaml,
    say,
    split_of,
    subcommands,
    verdict_on,
    write_whole,
)
from conversations import preview
from media import CHOICES, Unusable, choose_frames, frames_of, pictures
from metrics import boundary_error, segmental_f1
from models import FRAMES_AS, RATE, answers_to, find_model, fingerprint, load_vlm, resolved_commit, spoken
from stats import clusters, criterion, holm, mean_and_interval, paired_test, resampled, verdict, widened
from synthetic import FRAMES_AT, JAPAN, NULL, OPERATIONS, draw_operations

# ---------------------------------------------------------------- reading OpenPack

FIXED = "U0108", 30  # the first so many clips of this subject are the fixed test
CHANGE = 1  # seconds: a clip that ends no further from a change of operation is a boundary clip
# short: the smallest models write nearly letter by letter
ASK_OPERATION = "What is done now, since when, until when, and what is next?"


def table_of(path, columns):
    """Rows of a CSV file as dicts. Raises ValueError where it cannot be read, or lacks one of the columns."""
    try:
        table = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")))
    except OSError as e:
        raise ValueError(e) from e
    if missing := [c for c in columns if c not in (table.fieldnames or ())]:
        raise ValueError(f"lacks the columns {', '.join(missing)}; its header says {table.fieldnames}")
    return list(table)


def read_openpack(root):
    """Sessions as published, and what is wrong with any: [{user, session, work: [(start, end, id)], folder, names and times of its frames, ends: when a clip may end}], [(name, reason)]. Unix time."""
    found, problems = [], []
    files = sorted(root.glob("*/annotation/openpack-operations/*.csv"))
    if not files:
        refuse(f"{root} holds no U####/annotation/openpack-operations/*.csv; give --root the folder above")
    for path in tqdm(files, desc="sessions", unit="session"):
        user, session, work = path.parents[2].name, path.stem, []
        by_second = path.parents[1] / "openpack-operations-1hz" / path.name
        name = f"{user}/{session}"
        try:
            table = table_of(path, ("id", "start", "end"))
        except ValueError as e:
            problems.append((name, f"openpack-operations/{path.name} {e}"))
            continue
        for line, row in enumerate(table, 2):
            try:
                start, end = (datetime.fromisoformat(row[k]) for k in ("start", "end"))
                start, end = ((x if x.tzinfo else x.replace(tzinfo=JAPAN)).timestamp() for x in (start, end))
                operation = int(row["id"])
            except (TypeError, ValueError) as e:
                problems.append((name, f"line {line} of {path.name} is no operation ({e})"))
                continue
            if end <= start:
                problems.append((name, f"line {line} of {path.name} ends before it begins"))
            elif operation not in (*OPERATIONS, NULL):
                problems.append(
                    (name, f"line {line} of {path.name} has id {operation}, which is no operation")
                )
            else:
                work.append((start, end, operation))
        work.sort()
        for a, b in itertools.pairwise(work):
            if a[1] - b[0] > 1:
                when = datetime.fromtimestamp(b[0], JAPAN)
                problems.append(
                    (name, f"two operations overlap by {a[1] - b[0]:.1f} seconds, from {when} on")
                )
        folder, times, names = root / user / FRAMES_AT / session, [], []
        for picture in sorted(folder.rglob("*.jpg"), key=lambda p: p.name):
            try:
                taken = datetime.strptime(picture.stem, "%Y%m%d_%H%M%S_%f").replace(tzinfo=JAPAN)
                times.append(taken.timestamp())
                names.append(str(picture.relative_to(folder)))
            except ValueError:
                problems.append((name, f"{picture.name} is not called YYYYMMDD_hhmmss_mmm.jpg"))
        if not names or not work:
            problems.append((name, "has no frames" if work else "has no operations"))
            continue
        ends = np.arange(np.ceil(work[0][0]), work[-1][1])  # whole seconds, where there are no labels of each
        if by_second.is_file():
            try:
                table = table_of(by_second, ("unixtime", "id"))
                labels = [(int(row["unixtime"]) / 1000, int(row["id"])) for row in table]
            except (TypeError, ValueError) as e:
                problems.append((name, f"openpack-operations-1hz/{path.name} {e}"))
                continue
            other = []
            for t, o in labels:
                if o not in ({known for start, end, known in work if start - 1 <= t <= end + 1} or {NULL}):
                    other.append(datetime.fromtimestamp(t, JAPAN))
            if other:
                reason = (
                    f"{len(other)} of {len(labels)} seconds have another operation in openpack-operations-1hz"
                )
                problems.append((name, f"{reason}, first at {other[0]}"))
            ends = np.unique([t for t, _ in labels])
        one = {"user": user, "session": session, "work": work, "folder": folder, "names": names}
        found.append(one | {"times": np.array(times), "ends": ends})
    return found, problems


def subjects_of(users, test, val):
    """{user: split}. test, val: names with commas between; unsaid: of the ring of subjects that begins at U0108 (where there is one) the first 30% are test, the last tenth val, at least one each."""
    named = {u: part for part, said in (("test", test), ("val", val)) for u in (said or "").split(",") if u}
    if unknown := sorted(set(named) - set(users)):
        refuse(f"there is no subject {unknown[0]}; known: {', '.join(users)}")
    first = users.index(FIXED[0]) if FIXED[0] in users else 0
    ring = [u for u in users[first:] + users[:first] if u not in named]
    if not test:
        k = max(1, round(0.3 * len(users)))
        named, ring = named | dict.fromkeys(ring[:k], "test"), ring[k:]
    if not val:
        named |= dict.fromkeys(ring[-max(1, len(users) // 10) :], "val")
    return {u: named.get(u, "train") for u in users}


def most_frequent(counts):
    """Of {name: how often} the first name, in alphabetical order, that is most frequent."""
    return max(sorted(counts), key=counts.get)


def grammar(sessions):
    """What train's labels say without a picture: {bigram: {operation before, or "(start)": {operation: times}}, seconds: {operation: how long in all},
    clock: the commonest operation in every ten seconds of a session, start, end: medians, of all seconds, of how long ago the operation began and of when it ends}."""
    pairs, seconds, clock, apart = {}, Counter(), {}, []
    for s in sessions:
        work = [w for w in s["work"] if w[2] in OPERATIONS]
        for before, (_, _, o) in zip(["(start)", *(OPERATIONS[w[2]] for w in work)], work, strict=False):
            pairs.setdefault(before, Counter())[OPERATIONS[o]] += 1
        for start, end, o in work:
            for t in np.arange(np.ceil(start), end):
                seconds[OPERATIONS[o]] += 1
                clock.setdefault(int((t - s["work"][0][0]) // 10), Counter())[OPERATIONS[o]] += 1
                apart.append((start - t, end - t))
    start, end = np.median(apart, 0).tolist()
    return {
        "bigram": {k: dict(sorted(v.items())) for k, v in sorted(pairs.items())},
        "seconds": dict(sorted(seconds.items())),
        "clock": [most_frequent(clock.get(k, seconds)) for k in range(max(clock) + 1)],
        "start": start,
        "end": end,
    }


def operation_at(s, t):
    """(start, end, id) of what is done at a time of a session; id NULL where nothing is."""
    k = int(np.searchsorted([w[0] for w in s["work"]], t, "right")) - 1
    return s["work"][k] if k >= 0 and t < s["work"][k][1] else (0, 0, NULL)


def clip_ends(s, window, count):
    """The clips that a session could give: (second, numbers of the window's first and last frame, does it end at a change?), for each second at whose last frame somebody does an operation
    and before which there are frames of `window` seconds, or of three quarters of them."""
    times, changes = s["times"], np.unique([x for w in s["work"] for x in w[:2]])
    for t in s["ends"]:
        last = int(np.searchsorted(times, t, "right")) - 1
        first = int(np.searchsorted(times, times[last] - window, "right"))
        if last < 0 or t - times[last] > 1 or operation_at(s, times[last])[2] == NULL:
            continue
        if last - first + 1 >= count and times[last] - times[first] >= 0.75 * window:
            boundary = bool(np.abs(changes - times[last]).min() <= CHANGE)
            yield int(t - s["work"][0][0] + 1e-6), first, last, boundary


def clip_row(s, part, count, second, first, last, boundary):
    """The truth about a clip, and the `paths` of its window."""
    now, work = s["times"][last], [w for w in s["work"] if w[2] in OPERATIONS]
    start, end, o = operation_at(s, now)
    k, name = work.index((start, end, o)), OPERATIONS[o]
    after, before = (OPERATIONS[work[j][2]] if 0 <= j < len(work) else None for j in (k + 1, k - 1))
    answer = {"operation": name, "start": round(start - now), "end": round(end - now), "next": after}
    return {
        "id": f"{s['user']}-{s['session']}-{second:05d}",
        "source": f"{part}:{s['user']}-{s['session']}",
        "subject": s["user"],
        "action": name,
        "text": name,
        **answer,
        "start": float(start - now),
        "end": float(end - now),
        "previous": before,
        "earlier": OPERATIONS.get(operation_at(s, now - 1)[2]),
        "seconds": float(now - s["work"][0][0]),
        "boundary": boundary,
        "turns": [[ASK_OPERATION, json.dumps(answer)]],
        "paths": [s["folder"] / x for x in s["names"][first : last + 1]],
        "fps": max(round(float((count - 1) / (now - s["times"][first])), 1), 0.1),
    }


def chosen_rows(sessions, split, args):
    """Rows of the clips to keep. Of train --n, drawn, a share --boundary of them (where there are so many) within CHANGE seconds of a change; of test about --asked, of val a quarter of that:
    one every --every seconds from the beginning of each session on, equally many of each. The first of FIXED are marked `fixed`."""
    n, count, boundary = args.n, args.count, args.boundary
    of = {"train": [], "val": [], "test": []}
    for s in sessions:
        of[split[s["user"]]].append((s, list(clip_ends(s, args.window, count))))
    every_train = [(s, *end) for s, ends in of["train"] for end in ends]
    order = [every_train[k] for k in np.random.default_rng(args.seed).permutation(len(every_train))]
    near = [end for end in order if end[-1]][: round(n * boundary)]
    rest = [end for end in order if not end[-1]] if boundary else order
    rows = [clip_row(s, "train", count, *end) for s, *end in near + rest[: n - len(near)]]
    rows.sort(key=lambda r: r["id"])
    for part, most in (("val", args.asked // 4), ("test", args.asked)):
        for s, ends in of[part]:
            ends = [end for end in ends if end[0] % args.every == 0][: max(1, -(-most // len(of[part])))]
            rows += [clip_row(s, part, count, *end) for end in ends]
    for r in [r for r in rows if r["subject"] == FIXED[0] and r["source"].startswith("test:")][: FIXED[1]]:
        r["fixed"] = True
    return rows


def operation_clips(rows, count, how, size, skip_bad, notes, seed):
    """Items of rows: of each window `count` frames, chosen `how`. `notes` gets what cannot be read, (id, kind, reason); once one is bad the rest is only checked, unless skip_bad."""
    for n, row in enumerate(tqdm(rows, desc="clips", unit="clip")):
        paths = row.pop("paths")
        try:
            seen = torch.zeros(len(paths), 1, 1, 3, dtype=torch.uint8)
            if how in ("motion", "scene"):
                seen = pictures(paths, 64)
            frames = pictures([paths[k] for k in choose_frames(seen, count, how, (seed, n))], size)
        except Unusable as e:
            notes.append((row["id"], *e.args))
            continue
        if skip_bad or not notes:
            yield row | {"frames": frames, "height": frames.shape[1], "width": frames.shape[2]}


def write_openpack(out, args, meta):
    """data/<out> of a set in OpenPack's layout. A made-up one says so itself, in made.yaml."""
    if args.count < 2 or args.window <= 0 or args.asked < 1 or args.every < 1 or not 0 <= args.boundary <= 1:
        refuse("--count, --window, --asked, --every, --boundary: give at least 2, above 0, 1, 1, and 0 to 1")
    root, made = Path(args.root), Path(args.root) / "made.yaml"
    sessions, problems = read_openpack(root)
    for name, reason in problems:
        print(f"{name}: {reason}", file=sys.stderr)
    if problems and not args.skip_bad:
        refuse(f"{len(problems)} problems in {root}, listed above; mend them or give --skip-bad")
    split = subjects_of(sorted({s["user"] for s in sessions}), args.test, args.val)
    rows = chosen_rows(sessions, split, args)
    if lacking := {"train", "val", "test"} - {split_of(r["source"]) for r in rows}:
        part = min(lacking)
        refuse(f"{root} has no clip of {args.window:g} s for {part}; give another --test, --val or --window")
    from PIL import Image

    with Image.open(rows[0]["paths"][0]) as picture:
        size = args.size or min(224, *picture.size)
    known = grammar([s for s in sessions if split[s["user"]] == "train"])
    meta["data"] = load_yaml(made)["data"] if made.is_file() else "real"
    meta |= {"size": size, "frames": args.count, "window": args.window, "chosen": args.frames}
    meta |= {"every": args.every, "boundary": args.boundary, "subjects": split}
    meta |= {"operations": list(OPERATIONS.values()), "grammar": known, "problems": len(problems)}
    notes = []
    items = operation_clips(rows, args.count, args.frames, size, args.skip_bad, notes, args.seed)
    write_whole(out, items, meta, verdict_on(notes, len(rows), args.skip_bad))


# ---------------------------------------------------------------- what models answer

TOLD_MORE = (
    'Answer with nothing but JSON of four keys: "operation", what is done at the end of the clip, one of {}; "start" and "end", in seconds from the end of the clip on, when it began'
    # to a model that has not been taught the answer's form
    ' (below 0) and when it will end; "next", the operation that will follow.'
)
SCORES = ["macro_f1", "accuracy", "next_accuracy", "start_error", "end_error"]
SCORES += ["segmental_f1_10", "segmental_f1_25", "segmental_f1_50", "boundary_error"]
CHEATS = ("copy",)  # sees the truth of a second ago, which hardly ever changes: what looks good for nothing


def parse_operation(text, operations):
    """{operation, next: numbers in `operations` or None; start, end: seconds or None; json} of an answer; the first object of JSON in it counts, names in any case."""
    for found in re.finditer(r"\{[^{}]*\}", text):
        try:
            said = json.loads(found[0])
        except ValueError:
            continue
        number = {o.lower(): k for k, o in enumerate(operations)}
        found = {key: number.get(str(said.get(key)).strip().lower()) for key in ("operation", "next")}
        for key in ("start", "end"):
            seconds = said.get(key)
            found[key] = float(seconds) if isinstance(seconds, (int, float)) and abs(seconds) < 1e6 else None
        return found | {"json": True}
    return {"operation": None, "next": None, "start": None, "end": None, "json": False}


def confusions(truth, said, sources, n):
    """How often each operation was said for each in truth, by source: float64 [sources, n, n + 1], the last column for none. truth, said: numbers, None."""
    cluster, counts = clusters(sources), torch.zeros(len(set(sources)), n, n + 1, dtype=torch.float64)
    for s, a, b in zip(cluster.tolist(), truth, said, strict=True):
        counts[s, a, n if b is None else b] += 1
    return counts


def macro_f1(counts):
    """Mean over the operations that occur in truth of the F1 of each, [...] of counts [..., n, n + 1]."""
    hits, true = counts.diagonal(dim1=-2, dim2=-1), counts.sum(-1)
    f1 = 2 * hits / (true + counts.sum(-2)[..., :-1]).clamp(min=1e-9)
    return (f1 * (true > 0)).sum(-1) / (true > 0).sum(-1)


def macro_tested(own, other, seed, n=2000):
    """Macro-F1 of `own`, and how much more than that of `other`, counts [sources, n, n + 1] both: intervals from resampling sources, p from exchanging the two within sources drawn at random."""
    g = torch.Generator().manual_seed(seed)
    weights = resampled(len(own), n, g)
    a, b = (macro_f1(torch.einsum("ks,sij->kij", weights, x)) for x in (own, other))
    at = torch.tensor([0.025, 0.975], dtype=torch.float64)
    score, gain = macro_f1(own.sum(0)).item(), (macro_f1(own.sum(0)) - macro_f1(other.sum(0))).item()
    low, high = widened(score, *a.quantile(at).tolist(), len(own))
    gain_low, gain_high = widened(gain, *(a - b).quantile(at).tolist(), len(own))
    swap = torch.randint(2, (n, len(own)), generator=g).double()
    mixed = [
        torch.einsum("ks,sij->kij", s, own) + torch.einsum("ks,sij->kij", 1 - s, other)
        for s in (swap, 1 - swap)
    ]
    exceed = ((macro_f1(mixed[0]) - macro_f1(mixed[1])).abs() >= abs(gain) - 1e-12).sum().item()
    gains = {"gain": gain, "gain_low": gain_low, "gain_high": gain_high, "p": (1 + exceed) / (1 + n)}
    return {"score": score, "low": low, "high": high} | gains


def without_pictures(items, grammar, operations):
    """What is answered to clips by who sees none: {name: {operation, next, start, end: a list each}}, where that is anything to answer."""
    number = {o: k for k, o in enumerate(operations)}

    after = {o: most_frequent(counts) for o, counts in grammar["bigram"].items()}
    usual, clock, n = most_frequent(grammar["seconds"]), grammar["clock"], len(items)
    every = sum(map(Counter, grammar["bigram"].values()), Counter())
    return {
        "majority": {"operation": [number[usual]] * n},
        "clock": {"operation": [number[clock[min(int(i["seconds"] // 10), len(clock) - 1)]] for i in items]},
        "copy": {"operation": [number.get(i["earlier"]) for i in items]},
        "bigram": {
            "operation": [number[after.get(i["previous"] or "(start)", usual)] for i in items],
            "next": [number[after.get(i["operation"], usual)] for i in items],
        },
        "commonest": {"next": [number[most_frequent(every)]] * n},
        "median": {"start": [grammar["start"]] * n, "end": [grammar["end"]] * n},
    }


def timelines(items, truth, said, seed, every):
    """Scores of the clips of each session in their order as one row of segments: segmental F1, boundary error in seconds; the session is the unit."""
    sessions, keys = {}, ("segmental_f1_10", "segmental_f1_25", "segmental_f1_50", "boundary_error")
    found = {key: {} for key in keys}
    for k in sorted(range(len(items)), key=lambda k: items[k]["seconds"]):
        sessions.setdefault(items[k]["source"], []).append(k)
    for session in dict.fromkeys(i["source"] for i in items):
        a = [truth[k] + 1 for k in sessions[session]]
        b = [0 if said[k] is None else said[k] + 1 for k in sessions[session]]
        values = [segmental_f1(a, b, least) for least in (0.1, 0.25, 0.5)] + [every * boundary_error(a, b)]
        for key, value in zip(keys, values, strict=True):
            if value == value:  # nan: nothing changes
                found[key][session] = value
    row = {}
    for key, values in found.items():
        row |= mean_and_interval(key, torch.tensor(list(values.values())), list(values), seed)
    return row


def hits(truth, said, key, at):
    """1.0 for each item number of `at` whose `key` is said rightly, else 0.0."""
    return torch.tensor([float(said[key][k] == truth[key][k]) for k in at])


def seconds_off(items, said, key):
    """How many seconds the `start` or `end` said of each item is off; who gives no number says: now."""
    return torch.tensor([abs((s or 0.0) - i[key]) for s, i in zip(said[key], items, strict=True)])


def operation_row(items, truth, said, seed, every, counts):
    """The columns of the table of who says `said` ({operation, next, start, end: a list each}, or some of them) of clips; truth: {operation, next: numbers}."""
    sources, row = [i["source"] for i in items], {}
    fixed = [k for k, i in enumerate(items) if i.get("fixed")]

    def f1(key, at):
        a, b = ([named[key][k] for k in at] for named in (truth, said))
        return macro_f1(confusions(a, b, [0] * len(at), counts)[0])

    if "operation" in said:
        own = confusions(truth["operation"], said["operation"], sources, counts)
        test = macro_tested(own, own, seed)
        row |= {"macro_f1": test["score"], "macro_f1_low": test["low"], "macro_f1_high": test["high"]}
        accuracy = hits(truth, said, "operation", range(len(items)))
        row |= mean_and_interval("accuracy", accuracy, sources, seed)
        if fixed:
            row["accuracy_fixed"] = accuracy[fixed].sum().item() / len(fixed)
            row["macro_f1_fixed"] = f1("operation", fixed)
        row |= timelines(items, truth["operation"], said["operation"], seed, every)
    if "next" in said:
        at = [k for k, t in enumerate(truth["next"]) if t is not None]
        accuracy = hits(truth, said, "next", at)
        row |= mean_and_interval("next_accuracy", accuracy, [sources[k] for k in at], seed)
        row["next_macro_f1"] = f1("next", at)
    for key in ("start", "end"):
        if key in said:
            row |= mean_and_interval(f"{key}_error", seconds_off(items, said, key), sources, seed)
    return row


def taught_to(entry):
    """Has tune.py train taught this model how to answer?"""
    note = Path(entry["path"]) / "weights.yaml"
    return "adapter" in entry or note.is_file() and load_yaml(note).get("trained_by") == "tune.py train"


def operation_answers(entry, model, processor, items, operations, size, batch, most):
    """What a model answers to the question of each clip."""
    texts, together = [""] * len(items), {}
    hint = f" {TOLD_MORE.format(', '.join(operations))}"
    if taught_to(entry) or entry["weights"] == "small":
        hint = ""
    for k, i in enumerate(items):
        together.setdefault((i["turns"][0][0], len(i["frames"]), min(i.get("fps", RATE), RATE)), []).append(k)
    with tqdm(total=len(items), desc=entry["name"], unit="clip") as bar:
        for (question, length, rate), members in together.items():
            for some in (members[k : k + batch] for k in range(0, len(members), batch)):
                shown = torch.stack([frames_of(items[k], size) for k in some])
                at = list(range(length)), length, rate
                answers = answers_to(model, processor, shown, question + hint, at, most)
                for k, text in zip(some, answers, strict=True):
                    texts[k] = text
                bar.update(len(some))
    return texts


def confused_most(items, truth, said, operations):
    """The pair of operations taken for each other most often, and what is to be said of these clips; None where none is."""
    pairs = {}
    for k, (a, b) in enumerate(zip(truth, said, strict=True)):
        if b is not None and a != b:
            pairs.setdefault(tuple(sorted((a, b))), []).append(k)
    if not pairs:
        return None, []
    pair = max(sorted(pairs), key=lambda p: len(pairs[p]))
    at, names = pairs[pair], [operations[k] for k in pair]
    either = [k for k, a in enumerate(truth) if a in pair]
    return {
        "pair": names,
        "clips": len(at),
        "of": len(either),
        "share_of_errors": len(at) / sum(map(len, pairs.values())),
        "at_a_change": sum(items[k]["boundary"] for k in at) / len(at),
        "at_a_change_usually": sum(items[k]["boundary"] for k in either) / len(either),
        "said_what_was_before": sum(items[k]["previous"] == operations[said[k]] for k in at) / len(at),
        "said_what_comes_next": sum(items[k]["next"] == operations[said[k]] for k in at) / len(at),
        "ids": [items[k]["id"] for k in at[:8]],
    }, at


def draw_confusions(path, tables, operations, items, at, said):
    """operations.png: what was said (columns) of each operation (rows) by each of some models, and the frames of a few of the clips `at` of the pair confused most."""
    import matplotlib
    from matplotlib.figure import Figure

    shown = at[:: -(-len(at) // 4)][:4] if at else []
    short = [o if len(o) < 15 else f"{o[:13]}." for o in operations]
    with matplotlib.rc_context({"font.size": 8}):
        figure = Figure((5.6 * len(tables), 5.4 + 1.15 * len(shown)), layout="constrained")
        heights = [5.4, *[1.15] * len(shown)]
        parts = figure.subfigures(1 + len(shown), 1, height_ratios=heights, squeeze=False)[:, 0]
        axes = parts[0].subplots(1, len(tables), squeeze=False)[0]
        for axis, (name, counts) in zip(axes, tables.items(), strict=True):
            share = counts / counts.sum(1, keepdim=True).clamp(min=1)
            axis.imshow(share.numpy(), cmap="cividis", vmin=0, vmax=1)
            for a, b in (share >= 0.005).nonzero().tolist():
                x, style = share[a, b].item(), {"ha": "center", "va": "center", "fontsize": 7}
                axis.text(b, a, f"{100 * x:.0f}", color="black" if x > 0.5 else "white", **style)
            axis.set_xticks(range(len(operations) + 1), [*short, "none"], rotation=90)
            axis.set_yticks(range(len(operations)), short)
            axis.set_title(f"{name}: % of the true operation's clips", fontsize=9)
        for part, k in zip(parts[1:], shown, strict=True):
            item, axis = items[k], part.subplots()
            axis.imshow(torch.cat(list(item["frames"]), 1).numpy(), interpolation="nearest")
            axis.set_axis_off()
            true = f"{item['id']}: {item['operation']}, since {-item['start']:.1f} s"
            axis.set_title(f"{true}; said: {operations[said[k]]}", fontsize=8, loc="left")
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=100)
    save_bytes(path, content.getvalue())


def operations_world(args):
    """Everything that is checked before a model is loaded."""
    w = SimpleNamespace(entries={}, every=Items(args.data))
    w.index = w.every.index
    if not {"operations", "grammar", "every"} <= set(w.index):
        refuse(f"{args.data} holds no operations; give --data a folder that operations.py read wrote")
    w.items = [w.every[k] for k, s in enumerate(w.every.sources) if split_of(s) == "test"]
    positive(args, "clips", "batch", "size")
    w.items = w.items[: args.clips]
    if not w.items:
        refuse(f"{args.data} has no test clips; give a folder with more clips")
    for name in args.models:
        entry = find_model(name)
        if entry.get("type") not in FRAMES_AS:
            what = f"{name} is of type {entry.get('type')} and takes no chat about several frames"
            refuse(f"--models: {what}; use a Qwen model, llava-onevision or internvl3-8b")
        if entry["name"] in w.entries:
            refuse(f"--models gives {entry['name']} twice; give each model once, the base first")
        w.entries[entry["name"]] = entry
    w.out = Path(args.out or f"results/{next(iter(w.entries))}/{Path(args.data).name}/operations.yaml")
    check_writable(w.out)
    return w


def compared_with(rivals, own, items, truth, seed):
    """(criteria, paired tests of the next operation) of what is said in `own` against {rival: what it says}."""
    sources, followed = (
        [i["source"] for i in items],
        [k for k, x in enumerate(truth["next"]) if x is not None],
    )
    everyone, of_followed = range(len(items)), [sources[k] for k in followed]

    now = {}
    after = {}
    for name, other in rivals.items():
        if "operation" in other and name not in CHEATS:
            now[name] = hits(truth, other, "operation", everyone)
        if "next" in other:
            after[name] = hits(truth, other, "next", followed)
    mine = hits(truth, own, "next", followed)
    criteria = {
        "accuracy": criterion(hits(truth, own, "operation", everyone), now, sources, seed=seed),
        "next_accuracy": criterion(mine, after, of_followed, seed=seed),
    }
    for key in ("start", "end"):
        off = {name: seconds_off(items, other, key) for name, other in rivals.items() if key in other}
        lower = {"ceiling": 0.0, "better": "lower", "seed": seed}
        criteria[f"{key}_error"] = criterion(seconds_off(items, own, key), off, sources, **lower)
    tests = {}
    for name, other in after.items():
        tests[f"next_accuracy_over_{name}"] = paired_test(mine, other, of_followed, seed=seed)
    return criteria, tests


def run_score(args, started):
    """operations.yaml: what each model says is done at a bench, beside who has seen no picture. The first model is the base, the last the one in question."""
    w = operations_world(args)
    names, every, n = w.index["operations"], w.index["every"], len(w.index["operations"])
    number = {o: k for k, o in enumerate(names)}
    device, dtype, why = choose_device()
    print(f"device {device.type} ({why})")
    kept_at = w.out.with_name(f"{w.out.stem}-answers.pt")
    kept = load_pt(kept_at, ANSWERS).get("answers", {}) if kept_at.is_file() else {}
    films = digest(b"".join(digest(i["frames"].numpy().tobytes()).encode() for i in w.items))
    longest = max(len(i["turns"][0][1]) for i in w.items)
    texts, costs = {}, {}
    for label, entry in w.entries.items():
        size = args.size or entry["clip"]

        def say_all(entry=entry, size=size):
            model, processor = load_vlm(entry, device, dtype)
            most = max(len(processor.tokenizer(i["turns"][0][1]).input_ids) for i in w.items) + 32
            return operation_answers(entry, model, processor, w.items, names, size, args.batch, most)

        turns = [i["turns"] for i in w.items]
        asked = films, turns, longest, fingerprint(entry), size, args.batch, str(dtype)
        stamp = digest(repr(asked).encode())
        costs[label] = spoken(label, stamp, say_all, kept, kept_at, "operations")
        texts[label] = costs[label]["texts"]

    truth = {key: [number.get(i[key]) for i in w.items] for key in ("operation", "next")}
    sources, base, main = [i["source"] for i in w.items], next(iter(w.entries)), list(w.entries)[-1]
    parsed = {label: [parse_operation(x, names) for x in own] for label, own in texts.items()}
    said = {}
    for label, own in parsed.items():
        said[label] = {key: [p[key] for p in own] for key in ("operation", "next", "start", "end")}
    floors = without_pictures(w.items, w.index["grammar"], names)
    table = {}
    for label, own in (said | floors).items():
        table[label] = operation_row(w.items, truth, own, args.seed, every, n)
    for label, own in parsed.items():
        table[label]["no_json"] = sum(not p["json"] for p in own) / len(w.items)
        table[label]["seconds_per_clip"] = costs[label]["seconds"] / len(w.items)

    rivals = ({base: said[base]} if base != main else {}) | floors
    counts = {}
    for label, own in (said | floors).items():
        if "operation" in own:
            counts[label] = confusions(truth["operation"], own["operation"], sources, n)
    criteria, tests = compared_with(rivals, said[main], w.items, truth, args.seed)
    gains = {}
    for name in counts:
        if name != main:
            gains[f"macro_f1_over_{name}"] = macro_tested(counts[main], counts[name], args.seed)
    tests = gains | tests
    for name, p_value in holm({name: test["p"] for name, test in tests.items()}).items():
        tests[name]["p_holm"] = p_value
    above = verdict(*(tests[f"macro_f1_over_{name}"] for name in counts if name not in (main, *CHEATS)))
    pair, at = confused_most(w.items, truth["operation"], said[main]["operation"], names)
    shown = {name: counts[name].sum(0) for name in dict.fromkeys((base, main))}
    draw_confusions(w.out.with_suffix(".png"), shown, names, w.items, at, said[main]["operation"])

    result = {
        "stage": "operations",
        "model": base,
        "tuned": main if main != base else None,
        "weights": w.entries[main]["weights"],
        "data": w.index["data"],
        "data_name": w.index["name"],
        "answer": {"yes": "PASS", "no": "FAIL"}.get(above, "INCONCLUSIVE"),
        "above_every_floor": above,
    }
    for key in SCORES:
        result |= {f"{key}{end}": table[main][f"{key}{end}"] for end in ("", "_low", "_high")}
        result |= {f"{key}_{name}": row[key] for name, row in table.items() if name != main and key in row}
    for key in ("no_json", "accuracy_fixed", "macro_f1_fixed"):
        result[key] = table[main].get(key)
        if base != main:
            result[f"{key}_{base}"] = table[base].get(key)
    confusion = {}
    for o, row in zip(names, counts[main].sum(0).tolist(), strict=True):
        confusion[o] = {b: int(x) for b, x in zip([*names, "none"], row, strict=True) if x}
    examples = {}
    for k, i in enumerate(w.items[:3]):
        examples[i["id"]] = {"truth": i["turns"][0][1]} | {name: own[k] for name, own in texts.items()}
    where = {"device": f"{device.type} ({why})", "dtype": str(dtype)}
    where["model_revision"] = resolved_commit(w.entries[main])
    result |= {
        "confused_most": " / ".join(pair["pair"]) if pair else None,
        "clips": len(w.items),
        "sessions": len(set(sources)),
        "every": every,
        "fixed": sum(bool(i.get("fixed")) for i in w.items),
        "answers": table,
        "criteria": criteria,
        "comparisons": tests,
        "pair": pair,
        "confusion": confusion,
        "examples": examples,
        "run": run_info(args, started, script="operations.py", **where),
    }
    save_yaml(w.out, result)
    say(result)
    return result


def get_args(argv):
    p, jobs = subcommands(
        __doc__,
        {
            "draw": "a made-up set in OpenPack's own layout",
            "read": "clips of OpenPack as published: what is done at the end of each?",
            "score": "what vision-language models answer to that",
        },
    )
    add = jobs["draw"].add_argument
    add("--n", type=int, default=4, help="sessions of a subject")
    add("--size", type=int, default=64, help="side in pixels")
    add("--out", default="data/operations-raw", help="the folder to write")
    add = jobs["read"].add_argument
    add("--root", required=True, help="the folder of the published files, or what `draw` wrote")
    add("--n", type=int, default=2000, help="clips of train")
    add("--size", type=int, help="side in pixels (default: that of the files, at most 224)")
    add("--frames", choices=CHOICES, default="uniform", help="how --count frames are chosen")
    add("--count", type=int, default=8, help="frames of a clip")
    add("--window", type=float, default=8, help="seconds that they are chosen from")
    add("--test", help="subjects, with commas (default: U0108 and those after it, 30%% of all)")
    add("--val", help="subjects, with commas (default: those before U0108, a tenth of all)")
    add("--asked", type=int, default=600, help="test clips; a quarter as many of val")
    add("--every", type=int, default=2, help="seconds from one of these to the next")
    add("--boundary", type=float, default=0.5, help="share of train clips that end near a change")
    add("--skip-bad", action="store_true", help="go on without what has problems")
    add("--preview", action="store_true", help="also write preview.png, a contact sheet")
    add("--out", default="data/operations", help="the folder to write")
    add = jobs["score"].add_argument
    add("--data", default="data/operations", help="what `read` wrote")
    add("--models", nargs="+", default=["tiny"], help="the base first, the one in question last")
    add("--clips", type=int, help="only so many of the test clips")
    add("--size", type=int, help="side in pixels (default: the registry's for the model)")
    add("--batch", type=int, default=16, help="clips at a time")
    add("--out", help="default: results/<base>/<data>/operations.yaml")
    return p.parse_args(argv)


def run_draw(args):
    out = Path(args.out)
    if args.n < 1 or args.size < 16:
        refuse(f"--n {args.n} and --size {args.size} leave nothing to draw; give 1 or more, and 16 or more")
    check_writable(out / "made.yaml")
    result = draw_operations(out, args.size, args.seed, sessions=args.n)
    say(result)
    return result


def run_read(args):
    out = Path(args.out)
    if args.n < 1 or args.size is not None and args.size < 16:
        refuse(f"--n {args.n} and --size {args.size} leave nothing to write; give 1 or more, and 16 or more")
    check_writable(out / "index.yaml")
    write_openpack(
        out, args, {"name": out.name, "source_kind": "openpack", "data": "real", "seed": args.seed}
    )
    items = Items(out)
    if args.preview:
        preview(items, out / "preview.png")
    say(items.index, ("items", "sources", "train", "val", "test", "skipped", "rotated"))
    return items.index


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.mode == "draw":
        return run_draw(args)
    if args.mode == "read":
        return run_read(args)
    return run_score(args, started)


if __name__ == "__main__":
    main()
