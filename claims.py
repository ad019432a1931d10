"""Answers and claims about images and clips: words of place and direction, parsing, comparison with the truth."""

import functools
import re
from typing import NamedTuple

import torch

from common import TRACKS, fail, load_items, load_pt

# ---------------------------------------------------------------- truth beside the images

# Names of the cells of a 3 x 3 grid (as place_word of synthetic.py) and of directions, from the top left, by rows.
WORDS = {
    "place": (
        ("top left", "top", "top right"),
        ("left", "middle", "right"),
        ("bottom left", "bottom", "bottom right"),
    ),
    "direction": (
        ("up left", "up", "up right"),
        ("left", "still", "right"),
        ("down left", "down", "down right"),
    ),
}


def object_of_question(item):
    """(index, name) of the object of the questions: the largest of an image, the moving one (the last) of a clip.

    None: there is no object, or its name is not unique."""
    names = item.get("names", item["labels"])
    if not names:
        return None
    k = (
        len(names) - 1
        if "direction" in item
        else int((item["boxes"][:, 2:] - item["boxes"][:, :2]).prod(1).argmax())
    )
    return (k, names[k]) if names.count(names[k]) == 1 else None


# ---------------------------------------------------------------- directions


def whereabouts(frames, masks):
    """Centres [n,T,2] (x, y; pixels) of objects tracked by colour through frames uint8 [n,T,H,W,3].

    masks [n,H,W]: the objects in the first frame. nan: too little of that colour is left."""
    first, masks = frames[:, 0].float(), masks.float()[..., None]
    colour = (first * masks).sum((1, 2)) / masks.sum((1, 2))
    near = (-((frames.float() - colour[:, None, None, None]).square().sum(-1) / 60**2)).exp()
    near = torch.where(near > 0.3, near, 0)
    near = near * (near.sum((2, 3), keepdim=True) > 0.4 * masks.sum((1, 2))[:, None, None])
    y, x = torch.meshgrid(*(torch.arange(s) + 0.5 for s in frames.shape[2:4]), indexing="ij")
    return torch.stack([(near * c).sum((2, 3)) / near.sum((2, 3)) for c in (x, y)], -1)


def directions_of(centres):
    """The direction from the first to the last of centres [n,T,2]: the nearest of eight, "still" below 0.7 pixels.

    "": a centre is nan."""
    steps = {
        word: (column - 1, row - 1)
        for row, words in enumerate(WORDS["direction"])
        for column, word in enumerate(words)
        if word != "still"
    }
    vectors = torch.nn.functional.normalize(torch.tensor(list(steps.values())).float(), dim=1)
    motion = centres[:, -1] - centres[:, 0]
    return [
        "" if v.isnan().any() else "still" if v.norm() < 0.7 else list(steps)[int((vectors @ v).argmax())]
        for v in motion
    ]


def moving_objects(items, first):
    """(indices of clips with a still camera and a moving object visible in frame `first`, its masks there, its directions)."""
    moving = [
        i
        for i, item in enumerate(items)
        if {"mask", "direction", "names", "camera"} <= set(item)
        and item["direction"] != "still"
        and not any(item["camera"])
        and (item["mask"][first] == len(item["names"])).any()
    ]
    return (
        moving,
        torch.stack([items[i]["mask"][first] == len(items[i]["names"]) for i in moving]) if moving else None,
        [items[i]["direction"] for i in moving],
    )


def followed(x, last, moving, horizons):
    """{h: 0/1 [m]}: has the object moved in its true direction by frame h of generated clips [n, T, H, W, 3]?

    0 also where its colour is lost. last: real frames [n, H, W, 3] that give the colour; moving: of moving_objects."""
    numbers, masks, words = moving
    centres = whereabouts(torch.cat([last[numbers, None], x[numbers]], 1), masks)[:, 1:] if numbers else None
    return {
        h: torch.tensor(
            [a == b for a, b in zip(directions_of(centres[:, : h + 1]), words, strict=True)]
            if numbers
            else [],
            dtype=torch.float64,
        )
        for h in horizons
    }


# ---------------------------------------------------------------- facts about tracked objects as text

DESCRIBE_NAME = "Describe the {}."  # the answer: the sentences of `text` about it
COLOUR_NAMES = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPE_NAMES = ("circle", "triangle", "square", "star")
WIDTH, TIMES = 512, 32  # width of a track's embedding; number of frames


def load_tracks(path, items):
    """Read and check a tracker's output about the objects of `items`.

    {ids "<clip>/<object>", embedding fp32 [N, 512], scores, attention fp32 [N, 32], persistence fp32 [N], meta}.
    An object is one of the clip's names, its `absent` one, or its `removed` one.
    """
    tracks = load_pt(path, TRACKS)
    n = len(tracks["ids"])
    known_ids = {
        f"{i['id']}/{name}"
        for i in items
        for name in (*i["names"], i["absent"], *filter(None, [i.get("removed")]))
    }
    if unknown := [i for i in tracks["ids"] if i not in known_ids]:
        fail(
            f"{path} holds {unknown[0]!r}, which is no clip/object of the data; give the --data it was made from"
        )
    shapes = {"embedding": (n, WIDTH), "scores": (n, TIMES), "attention": (n, TIMES), "persistence": (n,)}
    for name, shape in shapes.items():
        x = tracks.get(name)
        if not torch.is_tensor(x) or x.shape != shape:
            found = list(x.shape) if torch.is_tensor(x) else type(x).__name__
            fail(f"{path}: {name} is {found} where {list(shape)} is expected; write it as track.py does")
        if not x.isfinite().all():
            places = (~x.isfinite()).nonzero()
            found = f"{len(places)} non-finite values, the first of {tracks['ids'][int(places[0, 0])]!r}"
            fail(f"{path}: {name} holds {found}; write it in fp32")
        tracks[name] = x.float()
        if name != "embedding" and not ((tracks[name] >= 0) & (tracks[name] <= 1)).all():
            fail(f"{path}: {name} ranges from {x.min():.3g} to {x.max():.3g}; write probabilities")
    if len(set(tracks["ids"])) < n:
        twice = next(i for i in tracks["ids"] if tracks["ids"].count(i) > 1)
        fail(f"{path} holds {twice!r} more than once; write each object once")
    if ((off := (tracks["attention"].sum(1) - 1).abs()) > 0.02).any():  # fp16 loses a thousandth
        k = int(off.argmax())
        fail(f"{path}: attention of {tracks['ids'][k]!r} sums to {tracks['attention'][k].sum():.3g}, not 1")
    return tracks


def spans_text(spans):
    """[[0, 9], [14, 14]] -> "0 to 9, 14"."""
    return ", ".join(f"{a} to {b}" if a < b else f"{a}" for a, b in spans)


def metadata_text(name, persistence=None, visible=None, direction=None, hidden=None, count=None):
    """Facts about an object as text, without those that are None.

    "red circle: persistence 0.97; frames 0 to 9, 14 to 31; direction right; hidden 10 to 13; count 2". persistence: a
    probability, cut to 0.01..0.99 (the small language model was not trained on 1.00). visible, hidden: spans
    [first, last] of frames, both included, or [] ("frames none", "hidden never"). count: coloured objects in the clip.
    """
    facts = {
        "persistence": persistence is not None and f"{min(max(persistence, 0.01), 0.99):.2f}",
        "frames": visible is not None and (spans_text(visible) or "none"),
        "direction": direction,
        "hidden": hidden is not None and (spans_text(hidden) or "never"),
        "count": count is not None and str(count),
    }
    return f"{name}: " + "; ".join(f"{key} {text}" for key, text in facts.items() if text)


def naming(rng):
    """(context, question, answer) of a text task: a list of objects and a question about one. rng: numpy's."""
    n = rng.integers(2, 5)
    colours, shapes = rng.permutation(COLOUR_NAMES)[:n], rng.permutation(SHAPE_NAMES)[:n]
    things = list(zip(colours, shapes, rng.integers(5, 96, (n, 2)).tolist(), strict=True))
    which = rng.integers(3)
    (colour, shape, (x, y)), place = things[(0, 1, -1)[which]], ("first", "second", "last")[which]
    question, answer = (
        (f"What shape is the {place} object?", shape),
        (f"What colour is the {place} object?", colour),
        (f"Where is the {place} object?", f"at {x} {y}"),
    )[rng.integers(3)]
    return (
        "Objects: " + "; ".join(f"{c} {s} at {x} {y}" for c, s, (x, y) in things) + ".",
        question,
        str(answer),
    )


def named(answer, truth):
    """Is a free answer to a question of `naming` correct? It names that colour or shape alone, or exactly these numbers."""
    words = [re.findall(r"[a-z]+|\d+", x.lower()) for x in (answer, truth)]
    given, true = (
        [
            w
            for w in x
            if w.isdecimal()
            or w in SHAPE_NAMES
            and truth in SHAPE_NAMES
            or w in COLOUR_NAMES
            and truth in COLOUR_NAMES
        ]
        for x in words
    )
    return list(dict.fromkeys(given)) == true if truth in SHAPE_NAMES + COLOUR_NAMES else given == true


def track_id(item, name):
    """The id of the track for a question about `name`; "" gives the clip's first object."""
    return f"{item['id']}/{name or [*item['names'], item['absent']][0]}"


def about(item, name):
    """The sentences of an item's text about one of its objects."""
    return re.split(r" (?=The |There )", item["text"][item["text"].index(f"The {name} is ") :])[0]


def parse_frames(words):
    """The set of frames in "frames 0 to 9 and 14" or "frame 7"; None for other words."""
    if not re.fullmatch(r"frames? \d+( to \d+)?( and \d+( to \d+)?)*", words):
        return None
    return {t for a, b in re.findall(r"(\d+)(?: to (\d+))?", words) for t in range(int(a), int(b or a) + 1)}


def is_correct(answer, truth):
    """Is an answer the truth, but for case and punctuation, or are its frames, by an IoU of at least 0.8?"""
    answer, truth = (text.strip(" \n.,;:!?'\"").casefold() for text in (answer, truth))
    given, true = parse_frames(answer), parse_frames(truth)
    return answer == truth or bool(given and true) and len(given & true) >= 0.8 * len(given | true)


# ---------------------------------------------------------------- words and boxes in an answer

NUMBER = r"(-?\d+(?:\.\d+)?)"
# [a, b, c, d], the first of [[a,b,c,d;...]], (a,b),(c,d)
FOUR = re.compile(rf"[\[(]\s*{NUMBER}\s*,\s*{NUMBER}\s*(?:,|\)\s*,?\s*\()\s*{NUMBER}\s*,\s*{NUMBER}\s*[\]);]")


def parse_box(text, scale="thousandths", side=None):
    """The first box in an answer, xyxy in 0..1, or None: there is no box, or it lies outside the image.

    scale of bare numbers: thousandths, fractions, or pixels of an image of `side` px or (width, height). Fractions are
    recognised under any scale. The tokens of Kosmos-2 (centres of the corner cells of a 32 x 32 grid), Florence-2
    (centres of a thousand bins) and PaliGemma (1024ths, y first) fix their own scale.
    """
    if len(cells := re.findall(r"<patch_index_(\d{4})>", text)[:2]) == 2:
        (x1, y1), (x2, y2) = ((int(c) % 32, int(c) // 32) for c in cells)
        # a box of one row or column takes whole cells, as in the library's processor
        grow = 0.5 if x1 == x2 or y1 == y2 else 0.0
        box = [(x1 + 0.5 - grow) / 32, (y1 + 0.5 - grow) / 32, (x2 + 0.5 + grow) / 32, (y2 + 0.5 + grow) / 32]
    elif len(bins := re.findall(r"<loc_(\d{1,3})>", text)[:4]) == 4:
        box = [(int(b) + 0.5) / 1000 for b in bins]
    elif len(bins := re.findall(r"<loc(\d{4})>", text)[:4]) == 4:
        box = [int(bins[k]) / 1024 for k in (1, 0, 3, 2)]
    elif found := FOUR.search(text):
        box = [float(n) for n in found.groups()]
        if not ("." in found.group() and max(box) <= 1):
            whole = {"thousandths": 1000, "fractions": 1, "pixels": side}[scale]
            box = [
                n / s
                for n, s in zip(box, 2 * whole if isinstance(whole, tuple) else [whole] * 4, strict=True)
            ]
    else:
        return None
    (x1, x2), (y1, y2) = sorted(box[::2]), sorted(box[1::2])
    return [x1, y1, x2, y2] if min(x1, y1) >= 0 and max(x2, y2) <= 1 else None


SIDES = {
    "left": (-1, None),
    "right": (1, None),
    **dict.fromkeys(("top", "upper", "up"), (None, -1)),
    **dict.fromkeys(("bottom", "lower", "down"), (None, 1)),
}
MIDDLE = {"place": r"middle|cent(?:er|re)", "direction": r"still|stationary|static|motionless|stands?"}
DENIED = re.compile(r"\b(?:no|not|cannot|neither|unclear)\b")
RELATIVE = re.compile(
    r"\b(?:left|right|top|bottom)(?:[- ]hand)?(?: side| edge| corner)? of (?!(?:the |this |an? )?(?:\w+ )?(?:image|picture|photo|photograph|frame|scene|canvas|screen)\b)"
)


def parse_word(text, kind):
    """The one of WORDS[kind] that a free answer means ("in the upper left corner"), or None.

    None: no such word, several that exclude each other, a denial, or a place relative to another object."""
    text = text.lower().replace("\u2019", "'").replace("n't", " not")
    if kind == "direction":
        if re.search(r"\bnot\b.*\bmov|\bno (?:motion|movement)", text):
            return "still"
        text = re.sub(r"\bfrom\b.*?\bto(?:wards?)?\b", "", text)  # the origin is not the direction
    if DENIED.search(text) or kind == "place" and RELATIVE.search(text):
        return None
    found = re.findall(
        r"\b(left|right|top|upper|up|bottom|lower|down)(?:[- ]?(?:wards?|most|hand))?\b",
        re.sub(r"\bright (?=in |at |there)", "", text),
    )
    column, row = ({SIDES[w][axis] for w in found} - {None} for axis in (0, 1))
    if len(column) > 1 or len(row) > 1 or not (found or re.search(rf"\b(?:{MIDDLE[kind]})\b", text)):
        return None
    return WORDS[kind][1 + (row.pop() if row else 0)][1 + (column.pop() if column else 0)]


# ---------------------------------------------------------------- describe: actions in sentences

# Verbs and their synonyms: of Something-Something's 174 templates (Goyal et al. 2017) and of manual work. Frozen
# before any generated clip was described: a synonym added for a model's answer would be fitted to the answers that
# it scores. Irregular forms are listed; `stem` handles the others.
SYNONYMS = {
    words.split()[0]: words.split()
    for words in re.split(
        r";\s*",
        """
    push shove nudge; pull drag tug yank; move shift slide glide travel bring brought carry relocate transfer; slide slid glide slip push move; lift raise hoist elevate; pick grab take took
    taken lift collect; drop fall fell fallen release; fall fell fallen drop tumble descend; throw threw thrown toss fling hurl; catch caught; put place set lay laid insert position deposit; lay
    laid place put set; place put set lay laid position; take took taken remove grab pick retrieve; remove take took taken pull lift withdraw detach; turn rotate flip pan; rotate turn spin spun;
    flip turn; roll; spin spun rotate twirl whirl; open unlock; close shut; fold crease; unfold unroll spread; tear tore torn rip; cover hide hid hidden wrap; uncover reveal expose unwrap;
    reveal uncover expose; pour tip empty fill; fill pour; spill spilt pour overflow; sprinkle scatter dust; spread smear; scoop spoon ladle; hold held grip grasp; show shown display present
    hold held; touch tap feel felt; tap touch knock; poke prod jab tap; hit strike struck knock bang smack slap; collide crash bump hit; squeeze squash press compress crush; press push squeeze;
    bend bent flex; break broke broken snap; twist wring wrung turn; wring wrung twist squeeze; tilt tip lean slant incline; tip tilt knock topple; lean leant prop rest; stack pile; pile stack
    heap; plug insert connect; attach fasten stick stuck fix connect join clip; detach remove disconnect unclip; connect attach plug join; stick stuck attach glue insert; insert put push place
    plug; stuff cram push put; bury cover; dig dug; wipe clean rub; clean wipe wash; scrape scratch; stretch pull extend; approach near; bounce; deflect bounce; float; burn burnt; hang hung;
    pass hand give gave; cut slice chop; pack box wrap; unpack; scan read; write wrote written fill; assemble build built construct; stand stood
""".strip(),
    )
}
# put and take are no pair: putting includes taking
OPPOSITES = "push pull; open close; cover uncover; fold unfold; lift drop; attach detach; pack unpack"
OPPOSITES = [pair.split() for pair in OPPOSITES.split("; ")]
# Directions: patterns of one group contradict each other. Prepositions of place contradict nothing ("on the table").
ACROSS = (
    r"(?:from )?(?:the )?{0} (?:side |edge )?(?:\w+ )?to(?:wards?)? (?:the )?{1}\b|to(?:wards?)? the {1} ?(?:side)?\b(?! to| of)|\b{1}wards?\b|"
    r"(?:camera|moves?|moving|slides?|sliding|pans?|turns?|turning) (?:to the )?{1}\b(?! to)"
)
DIRECTION_PATTERNS = (
    {"right": ACROSS.format("left", "right"), "left": ACROSS.format("right", "left")},
    {"up": r"\bup(?:wards?)?\b(?! ?(?:side|right))", "down": r"(?<!upside[ -])\bdown(?:wards?)?\b"},
    {
        "towards": r"\bcloser\b|\btowards?\b(?! the (?:left|right))",
        "away": r"\baway\b|\bf[au]rther\b|\bapart\b",
    },
    {
        "into": r"\binto\b(?! (?:two|half|halves|pieces))|\binside\b|\bin (?:the|a|an|it|something|some)\b",
        "out of": r"\bout\b|\bfrom (?:inside|within)\b",
    },
    {"onto": r"\bonto\b|\bon top\b|\bon\b", "off": r"\boff\b"},
    {"behind": r"\bbehind\b"},
    {"in front of": r"\bin front of\b"},
    {"next to": r"\bnext to\b|\bbeside\b|\balongside\b"},
    {"under": r"\bunder(?:neath)?\b|\bbeneath\b|\bbelow\b"},
    {"over": r"\bover\b|\babove\b"},
    {"upright": r"\bupright\b"},
    {"upside down": r"\bupside[- ]down\b"},
    {"in two": r"\btwo (?:pieces|halves|parts)\b|\bhalf\b"},
)
IMPLIED = {"lift": "up", "fall": "down", "approach": "towards"}  # stated by the verb itself
FEIGNED = {
    "pretend": r"\b(?:pretend|feign|mim(?:e|ing)|fake)\w*",
    "fail": r"\b(?:fail|unable|unsuccessful|attempt)\w*|\btr(?:y|ies|ied|ying)\b",
}
# phrasal verbs without a direction
PHRASES = (
    re.compile(
        r"\b((?:pick|open|fold|cover|tear|pil|stack|set|stand)\w*(?: (?:it|them|something|the \w+))?) up\b"
    ),
    re.compile(r"\b((?:put|set|plac|lay|sit)\w*(?: (?:it|them|something|the \w+))?) down\b"),
)
CLAUSE = re.compile(
    r",|\(|\b(?:but|so that|so it|so|until|then|without|while|because|that|like|with something (?:on|in) it)\b"
)
NEVER = re.compile(r"\b(?:not|never|without|instead of|rather than|no longer)\b.*?(?=[,.;]|\bbut\b|$)")
ASIDE = re.compile(
    r"\bin (?:the|this|a) (?:short )?(?:video|clip|scene|footage|film|image|picture|background|foreground|air)\b|\bin (?:his|her|their|one|the|a) hands?\b"
)


def stem(word):
    """A verb without its ending: moves, moved, moving -> mov."""
    for end in ("ing", "ed", "es", "s"):
        if word.endswith(end) and len(word) - len(end) >= 3:
            word = word[: -len(end)]
            break
    word = word[:-1] if len(word) > 3 and word[-1] == word[-2] else word
    return word[:-1] + "y" if word.endswith("i") else word.removesuffix("e")


STEMS = {verb: {stem(w) for w in words} for verb, words in SYNONYMS.items()}
LEADING = {stem(verb): verb for verb in SYNONYMS}


def parse_action(text, label=False):
    """{stems, directions, feigned} of a sentence, without what it denies; of a label, without its verb's IMPLIED ones."""
    text = text.lower().replace("\u2019", "'").replace("n't", " not")
    feigned = {name for name, pattern in FEIGNED.items() if re.search(pattern, text)}
    text = ASIDE.sub("", NEVER.sub("", text))
    for phrase in PHRASES:
        text = phrase.sub(r"\1", text)
    stems = {stem(w) for w in re.findall("[a-z]+", text)}
    found = {d for group in DIRECTION_PATTERNS for d, pattern in group.items() if re.search(pattern, text)}
    return {
        "stems": stems,
        "directions": found | {d for verb, d in IMPLIED.items() if not label and stems & STEMS[verb]},
        "feigned": feigned,
    }


@functools.cache
def required_words(action):
    """What a sentence must state for an action, a label or template, to be recalled.

    (its verb in SYNONYMS or None, stems of all its words, directions of its first clause, all directions, feigned)."""
    label = re.sub(r"[\[\]]", "", action.lower())
    words, whole = [stem(w) for w in re.findall("[a-z]+", label)], parse_action(label, True)
    return (
        next((LEADING[w] for w in words if w in LEADING), None),
        set(words),
        parse_action(CLAUSE.split(label)[0], True)["directions"],
        whole["directions"],
        whole["feigned"],
    )


def recalled(parsed, action):
    """Does a sentence, parsed by parse_action, state the action?

    It must contain the verb or a synonym and every direction, and no opposite. Pretending, trying or failing must agree
    with the action. A label whose verb is not in SYNONYMS needs all its words."""
    verb, words, directions, all_directions, feigned = required_words(action)
    if verb is None:
        return bool(words) and words <= parsed["stems"]
    opposite = {stem(b) for pair in OPPOSITES for a, b in (pair, pair[::-1]) if a == verb} - words
    if (
        not parsed["stems"] & STEMS[verb]
        or parsed["stems"] & opposite
        or parsed["feigned"] - feigned
        or bool(parsed["feigned"]) != bool(feigned)
    ):
        return False
    extra = parsed["directions"] - all_directions
    return directions <= parsed["directions"] and not any(
        directions & set(group) and extra & set(group) for group in DIRECTION_PATTERNS
    )


# ---------------------------------------------------------------- claims about trajectories

# Spans are true if their IoU with the true ones is at least OVERLAP, or every end is within ENDS frames; numbers and
# directions must be equal.
OVERLAP = 0.8
ENDS = 1
QUESTION_KINDS = "persistence", "frames", "direction", "hidden", "whatif", "count", "absent", "unknown"
# correct answers: there is no such object, or the clip does not show it
UNANSWERABLE = "absent", "unknown"
CLAIMS = "persistence", "span", "direction", "hidden", "count", "absence"
BEYOND = re.compile(
    r"\b(?:not|never) (?:show|say|tell|state|reveal)\b|\b(?:not|impossible to|no way to|hard to|never) (?:be )?"
    r"(?:know|tell|told|say|said|determine|infer|known|clear|possible|specified)|\bun(?:known|clear|certain)\b|\bno (?:information|idea)\b"
)
COLOURED = "red|green|blue|yellow|purple|cyan|orange|pink|white|black|brown|grey"
SHAPED = "circle|triangle|square|star|rectangle|diamond|cross|ring|hexagon|pentagon"
PAINTED = rf"(?:{COLOURED})[- ](?:{SHAPED})"
ALIKE = {
    "disc": "circle",
    "disk": "circle",
    "ball": "circle",
    "violet": "purple",
    "turquoise": "cyan",
    "gray": "grey",
    "colored": "coloured",
    "cannot": "can not",
    "thru": "to",
}
NUMBERS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMBERS = {word: n for n, word in enumerate(NUMBERS)} | {"zero": 0}
SIDE = r"(?:(?:up|down|left|upper|lower|top|bottom|right(?! (?:in|at|there|behind|away|after|before|now)\b))(?:[- ]?(?:wards?|hand))?)\b"
# Parts of sentences about objects; of several that match at a position the first counts. NAME: any object's name.
CLAIM_PATTERNS = {
    # another object than the subject
    "aside": r"\b(?:behind|by|of|past|beside|near|across|cross(?:es|ing)|meet(?:s|ing)|overtak(?:es|ing)|than|follow(?:s|ing)) (?:the |an? )?(?:NAME)",
    "choice": r"\b(?:persistent or transient|transient or persistent)\b",
    "count": rf"\b(?:\d+|{'|'.join(NUMBERS)})(?: (?:different|distinct|separate|coloured|moving|visible))* (?:objects?|shapes?|things?|figures?)\b(?! of)",
    "none": r"\bno (?:NAME)\b",
    "name": r"\b(?:NAME)\b",
    "since": r"\b(?:from|since|after|(?:starting|beginning) (?:in|at|from|with)) frame \d+(?: on(?:wards?)?)?(?! to \d)",
    "until": r"\b(?:until|till|up to|before) frame \d+",
    "frames": r"\bframes? \d+(?: to \d+)?(?:(?:,| and|, and) (?:frames? )?\d+(?: to \d+)?(?!\d| (?:coloured|objects?|shapes?)\b))*",
    "always": r"\b(?:throughout|always|the (?:whole|entire|full) (?:time|clip|video)|all (?:the time|along|the while)|(?:every|each|all)(?: single)?(?: the| of the)? frames?)\b",
    "not": r"\b(?:not|never|no longer|nothing|nor|neither)\b",
    "persistent": r"\b(?:persist(?:ent|s)|permanent)\b",
    "transient": r"\b(?:transient|temporary|impermanent|short-lived)\b",
    "hidden": r"\b(?:hidden|occluded|obscured|covered|concealed|blocked|hides|out of (?:sight|view)|(?:goes|going|passes|passing|moves|moving|disappears|slips|is)(?= behind\b))\b",
    "lost": r"\b(?:unseen|invisible)\b",
    "gone": r"\b(?:gone|absent|missing|nowhere)\b",
    "last": r"\b(?:leav(?:es?|ing)|(?<=\bit )left|(?<=\bhas )left|left(?= the (?:picture|clip|scene|frame|image|video)\b)|exit(?:s|ed)?|vanish(?:es|ed)?|disappear(?:s|ed)?|(?:goes|went) (?:away|out)|"
    r"last (?:seen|visible|appears?)|last(?:s|ed))\b",
    "first": r"\b(?:enter(?:s|ed)?|arrive[sd]?|emerge[sd]?|(?:comes?|came|move[sd]?) in(?: (?:in|at)\b|to\b)|(?:shows|turns|pops) up|first (?:seen|appear(?:s|ed)?|visible)|"
    r"(?:seen|appears?) (?:first|for the first time))\b",
    "seen": r"\b(?:visible|seen|appear(?:s|ed|ing)?(?! to\b)|shown|shows|in (?:view|sight)|observed)\b",
    "still": r"\b(?:(?:is|was|stay(?:s|ed)?|stands?|stood|remain(?:s|ed)?|keeps?|kept|sits?) (?:\w+ly )?still\b(?! (?:there|visible|in|seen|present|hidden|moving))|stationary|static|motionless)\b",
    "exists": r"\bthere (?:is|are|was|were)\b",
    "there": r"\b(?:there|present|in the (?:picture|clip|scene|frame|image|video)|on (?:the )?screen|exists?|stay(?:s|ed)?|remain(?:s|ed)?)\b",
    "moves": r"\b(?:mov(?:es?|ed|ing|ement)|motion|travel(?:s|led|ling|ed|ing)?|go(?:es|ing)?|went|head(?:s|ed|ing)?|drift(?:s|ed|ing)?|slid(?:es?|ing)?|glid(?:es?|ed|ing)|fl(?:y|ies|ew|ying)|"
    r"direction|way)\b",
    "way": rf"\b(?:from )?(?:to(?:wards?)? )?(?:the )?{SIDE}(?:(?:,| and| then| side)*(?: to(?:wards?)?)?[- ](?:the )?{SIDE})*(?! of\b)",
    "clause": r"[,;()]|\b(?:and|but|while|then|whereas|although)\b",
}


EXCEPT, IF = r"\b(?:except|apart from|other than)\b", r"\bif\b|\?$"  # such sentences are not parsed


class Claim(NamedTuple):
    """A claim of a text about an object (None: unclear which; "": all together); denied: that it is not so.

    value: persistence bool; span {"first" or "last": frame}, {"visible" or "present": spans} or {"visible at" or
    "present at": frame}; direction a word; hidden spans, or True (at some time); count a number; absence bool.
    """

    object: str | None
    kind: str
    value: object
    denied: bool = False


@functools.cache
def claim_pattern(names=()):
    """CLAIM_PATTERNS as one pattern, for names of a colour and a shape and for these names."""
    name = "|".join([*map(re.escape, names), PAINTED])
    return re.compile(
        "|".join(f"(?P<{kind}>{pattern.replace('NAME', name)})" for kind, pattern in CLAIM_PATTERNS.items())
    )


def normalised(text, names, frames):
    """A text in the spelling of CLAIM_PATTERNS: lower case, "frames 4 to 21" for all spellings of spans.

    The first and last frame become numbers, and a unique half of a name becomes the whole name."""
    text = re.sub(r"\d{5,}", "9999", text)  # equally false, and a short range
    text = " ".join(text.lower().replace("\u2019", "'").replace("n't", " not").replace("\u2013", "-").split())
    text = re.sub(rf"\b(?:{'|'.join(ALIKE)})\b", lambda m: ALIKE[m[0]], text)
    for name in names:
        for half in name.split():
            if sum(half in other.split() for other in names) == 1:
                text = re.sub(
                    rf"\b(the|an?|this|that) {half}(?: one| object| shape| thing)?\b(?! (?:{SHAPED})\b)",
                    rf"\1 {name}",
                    text,
                )
    for number, words in (
        (0, "the (?:beginning|start)|(?:the )?first frame"),
        (frames - 1, "the end|(?:the )?(?:last|final) frame"),
    ):
        text = re.sub(rf"\b(?:{words})\b(?! (?:of|edge)\b)", f"frame {number}", text)
    text = re.sub(r"\b(?:the )?(\d+)(?:st|nd|rd|th) frame\b", r"frame \1", text)
    text = re.sub(r"\bframe(s?) (?:numbers? |no\.? )?#?(\d)", r"frame\1 \2", text)
    text = re.sub(r"\bbetween (?:frames? )?(\d+) and (?:frame )?(\d+)", r"frames \1 to \2", text)
    return re.sub(
        r"\b(?:from )?(?:frames? )?(\d+) ?(?:to|through|until|till|up to|-) ?(?:frame )?(\d+)\b",
        r"frames \1 to \2",
        text,
    )


def sentences_of(text):
    return [s for s in re.split(r"(?<=[.!?])\s+|;\s", text) if re.search(r"\w", s)]


def spans_in(kind, words, frames, denied=False):
    """The spans of frames of a match of CLAIM_PATTERNS: [[4, 9], [14, 14]] of "frames 4 to 9 and 14".

    A denied "until frame 4" excludes frame 4."""
    found = [sorted((int(a), int(b or a))) for a, b in re.findall(r"(\d+)(?: to (\d+))?", words)]
    if kind == "since":
        return [[found[0][0] + words.startswith("after"), frames - 1]]
    if kind == "until":
        return [[0, found[0][0] - (denied or words.startswith("before"))]]
    return found or [[0, frames - 1]]


def claim_of_predicate(kind, words, denied, when, frames):
    """(kind of claim, value, denied) of a predicate with its match of time, if any; None: it claims nothing."""
    if kind in ("lost", "gone"):
        kind, denied = {"lost": "seen", "gone": "there"}[kind], not denied
    spans = when and spans_in(*when, frames, denied)
    numbers = [int(n) for n in re.findall(r"\d+", when[1])] if when else []
    if kind == "hidden":
        return "hidden", spans or not denied or [], bool(spans and denied)
    if kind in ("first", "last"):
        # an object that never enters is absent, one that never leaves stays to the end
        ends = ("absence", True, False) if kind == "first" else ("span", {"last": frames - 1}, False)
        return (
            ("span", {kind: numbers[0 if kind == "first" else -1]}, denied)
            if numbers
            else ends
            if denied
            else None
        )
    key = "visible" if kind == "seen" else "present"
    if len(numbers) == 1 and when[0] == "frames":
        return "span", {"first" if words.startswith("appear") else f"{key} at": numbers[0]}, denied
    if spans:
        return "span", {key: spans}, denied
    return (
        (("span", {"visible": []}, False) if kind == "seen" else ("absence", True, False)) if denied else None
    )


def parse_claims(text, names=(), frames=TIMES):
    """(claims of a text about objects, number of sentences without one).

    "It" is the object named last, or else the only one of `names`."""
    claims, unparsed, about = [], 0, list(names) if len(names) == 1 else [None]
    pattern = claim_pattern(
        tuple(sorted((name for name in names if not re.fullmatch(PAINTED, name)), key=len, reverse=True))
    )

    def claim(kind=None, value=None, denied=False):
        claims.extend(Claim(name, kind, value, denied) for name in about if kind)

    for sentence in sentences_of(normalised(text, names, frames)):
        before = len(claims)
        named = []
        last_name = 0
        fresh, denied = True, False
        moving = predicate = when = None
        for m in (
            [*pattern.finditer(sentence), re.compile("$").search(sentence)]
            if not re.search(f"{EXCEPT}|{IF}", sentence)
            else ()
        ):
            kind, words = m.lastgroup or "end", m[0]
            timed = kind in ("frames", "always", "since", "until")
            if when and (kind == "end" or kind == "clause" and (named or len(claims) > before)):
                predicate = "seen", "", False  # "the red circle: frames 4 to 21"
            if predicate and (when or kind not in ("clause", "aside", "way", "exists", "choice", "not")):
                claim(
                    *claim_of_predicate(*predicate, when or (kind, words) if when or timed else None, frames)
                    or ()
                )
                predicate, when, timed, kind = None, None, False, "when" if timed else kind
            if timed and fresh:
                when = kind, words
            fresh = (
                kind == "clause"
                or fresh
                and kind in ("name", "none", "it", "not", "exists", "aside", "always")
            )
            if kind in ("clause", "end"):
                if moving == "not":
                    claim("direction", "still")
                denied, moving = False, moving and "so"
            elif kind in ("name", "none"):
                joined = (
                    named
                    and len(claims) == before
                    and re.fullmatch(r"(?:,|and|the|an?|\s)+", sentence[last_name : m.start()])
                )
                about = (about if joined else []) + [words.removeprefix("no ").replace("-", " ")]
                moving = None
                last_name = m.end()
                named.append(about[-1])
                if kind == "none" or denied:
                    claims.append(Claim(about[-1], "absence", True))
                denied = False
            elif kind == "count":
                number = words.split()[0]
                claims.append(
                    Claim("", "count", int(number) if number.isdecimal() else NUMBERS[number], denied)
                )
            elif kind == "not" and predicate and not sentence[m.end() :].strip(" ."):  # "hidden: never"
                predicate = *predicate[:2], True
            elif kind == "not":
                denied = True
            elif kind in ("hidden", "lost", "gone", "last", "first", "seen", "there"):
                predicate, denied = (kind, words, denied), False
                if when:
                    claim(*claim_of_predicate(*predicate, when, frames) or ())
                    predicate = when = None
            elif kind in ("persistent", "transient"):
                claim("persistence", (kind == "persistent") != denied)
                denied = False
            elif kind == "still":
                claim("direction", "still", denied)
                denied = False
            elif kind == "moves":
                moving, denied = "not" if denied else "so", False
            elif (
                kind == "way"
                and moving
                and not (words.startswith("from") and " to" not in words)
                and (word := parse_word(words, "direction"))
            ):
                claim("direction", word, moving == "not")
                moving = "so"
            when = None if kind in ("persistent", "transient", "still", "moves") else when
        if len(claims) == before:
            claims += [Claim(name, "absence", False) for name in named]
        unparsed += len(claims) == before and not BEYOND.search(sentence)
    return claims, unparsed


def frames_of_spans(spans):
    return {t for a, b in spans for t in range(a, b + 1)}


def same_spans(a, b):
    """Are two lists of spans equal within OVERLAP or ENDS?"""
    x, y = frames_of_spans(a), frames_of_spans(b)
    return (
        len(x & y) >= OVERLAP * len(x | y)
        or len(a) == len(b)
        and all(abs(p - q) <= ENDS for s, t in zip(a, b, strict=True) for p, q in zip(s, t, strict=True))
    )


def check_claim(claim, item):
    """Is a claim true of a clip? None: its object is unclear, or the truth lacks the fact."""
    tracks = {t["object"]: t for t in item["tracks"]}
    name, kind, value, denied = claim
    if kind == "count":
        return (value == len(tracks)) != denied
    if name is None:
        return None
    if kind == "absence" or name not in tracks:
        return (name not in tracks) == (
            value if kind == "absence" else kind == "span" and value == {"visible": []}
        )
    track, (key, spans) = tracks[name], next(iter(value.items())) if kind == "span" else ("hidden", value)
    true = track.get(
        {"persistence": "persistent", "direction": "direction", "hidden": "hidden"}.get(kind)
        or ("visible" if key.startswith("visible") else "present")
    )
    if true is None:
        return None
    if key in ("first", "last"):
        return (
            bool(true) and (abs(spans - true[0 if key == "first" else -1][key == "last"]) <= ENDS) != denied
        )
    if kind in ("persistence", "direction"):
        return (value == true) != denied
    if key.endswith(" at"):
        return (spans in frames_of_spans(true)) != denied
    if spans is True:
        return bool(true)
    if denied:  # in none of these frames, except a few at their ends
        return len(frames_of_spans(spans) & frames_of_spans(true)) <= (1 - OVERLAP) * len(
            frames_of_spans(spans)
        )
    return same_spans(spans, true)


def omitted(claims, item):
    """(facts (object, kind) that no true claim states, all facts) of a clip.

    A span is stated by its frames, or by those of its ends that lie inside the clip."""
    true, last = [c for c in claims if not c.denied and check_claim(c, item)], len(item["frames"]) - 1
    facts, stated = [("", "count")], {(c.object, c.kind) for c in true if c.kind != "span"}
    for t in item["tracks"]:
        facts += [(t["object"], kind) for kind in ("persistence", "span", "direction", "hidden")]
        claimed = {key for c in true if c.object == t["object"] and c.kind == "span" for key in c.value}
        ends = set()
        if t["present"]:
            inside = {"first": t["present"][0][0] > 0, "last": t["present"][-1][1] < last}
            ends = {end for end in inside if inside[end]}
        if claimed & {"visible", "present"} or ends and ends <= claimed:
            stated.add((t["object"], "span"))
    return [fact for fact in facts if fact not in stated], facts


@functools.cache
def parse_answer(text, kind, name="", frames=TIMES):
    """The value of an answer to a question of this kind about an object: a bool, spans, a direction or a number.

    "absent": there is no such object; "unknown": the clip does not show it; None: none of these."""
    claims, whole = parse_claims(text, [name] if name else [], frames)[0], normalised(text, [], frames)
    if any(c.kind == "absence" and c.value is True or c.value == {"visible": []} for c in claims):
        return "absent"
    if BEYOND.search(whole):
        return "unknown"
    if re.search(EXCEPT, whole):
        return None
    if kind == "direction":
        return parse_word(text, kind)
    if kind in ("persistence", "count"):
        values = {c.value for c in claims if c.kind == kind and not c.denied} or (
            {int(n) for n in re.findall(r"\d+", whole)}
            | {NUMBERS[w] for w in re.findall("[a-z]+", whole) if w in NUMBERS}
            if kind == "count"
            else set()
        )
        return values.pop() if len(values) == 1 else None
    if kind == "hidden" and (
        [] in [c.value for c in claims if c.kind == kind] or re.fullmatch(r"(?:never|no|in none)\W*", whole)
    ):
        return []
    return (
        sorted(
            span
            for m in claim_pattern().finditer(whole)
            if m.lastgroup in ("frames", "always", "since", "until")
            for span in spans_in(m.lastgroup, m[0], frames)
        )
        or None
    )


def answer_kind(kind, truth):
    """The kind by which an answer is parsed: that of "what if" follows from its truth, frames or a direction."""
    return {
        "whatif": "frames" if "frame" in truth else "direction",
        **dict.fromkeys(UNANSWERABLE, "frames"),
    }.get(kind, kind)


def answer_is_correct(kind, answer, truth, name="", frames=TIMES):
    """Does a free answer have the value of the true one, within OVERLAP and ENDS?"""
    kind = answer_kind(kind, truth)
    given, true = (parse_answer(text, kind, name, frames) for text in (answer, truth))
    if isinstance(given, list) and isinstance(true, list):
        return same_spans(given, true)
    return given is not None and given == true


def frame_f1(answer, truth, name="", frames=TIMES):
    """F1 of the frames in an answer; 0 if it states none."""
    given, true = (
        frames_of_spans(s) if isinstance(s := parse_answer(text, "frames", name, frames), list) else set()
        for text in (answer, truth)
    )
    return 2 * len(given & true) / max(len(given) + len(true), 1)


def trajectory_folder(folder):
    items, index = load_items(folder)
    if incomplete := [
        i["id"]
        for i in items
        if not {"tracks", "topics", "turns", "absent"} <= set(i) or len(i["frames"]) != TIMES
    ]:
        fail(f"{folder} has no tracks of {incomplete[0]}; give --data that data.py trajectories wrote")
    return items, index
