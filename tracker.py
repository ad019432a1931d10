"""The tracker: a small video transformer that says in which frames each object of a clip is visible."""

import json
from pathlib import Path

import torch

from checkpoints import attempt
from common import fail, save_bytes, save_text


class Residual(torch.nn.Module):
    """A residual block of two 3 x 3 convolutions [n,width,h,w]."""

    def __init__(self, width):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.GroupNorm(1, width),
            torch.nn.Conv2d(width, width, 3, 1, 1),
            torch.nn.GELU(),
            torch.nn.Conv2d(width, width, 3, 1, 1),
        )

    def forward(self, x):
        return x + self.layers(x)


class Tracker(torch.nn.Module):
    """A small video transformer: in which frames is an object given by name visible, and is it persistent?

    A convolutional stem, mostly at a quarter of the resolution (so that shapes of ten pixels keep their
    corners), makes a token of each 8 x 8 patch. In each frame, a query (embeddings of colour and shape)
    attends to the patches. The query's tokens of all frames and a summary token then attend to each other;
    the summary also encodes which colours the clip shows, from one query per colour. Its attention over the
    frames pools their tokens. The embedding also holds a short projection of each frame.
    config: content of config.json; `layers`: (of the query in a frame, over the frames).
    """

    def __init__(self, config):
        super().__init__()
        self.config, side = config, config["image_size"] // 8
        (small, width), (hops, layers) = config["widths"], config["layers"]
        more = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.stem = torch.nn.Sequential(
            torch.nn.Conv2d(3, small // 2, 3, 2, 1),
            torch.nn.GELU(),
            torch.nn.Conv2d(small // 2, small, 3, 2, 1),
            Residual(small),
            Residual(small),
            torch.nn.Conv2d(small, small, 3, 2, 1),
        )
        self.colour, self.shape = (torch.nn.Embedding(len(config[k]), small) for k in ("colours", "shapes"))
        self.place, self.time, self.summary = (
            torch.nn.Parameter(torch.randn(*shape) * 0.5)
            for shape in ((side * side, small), (config["frames"], width), (1, width))
        )
        decoder, encoder = torch.nn.TransformerDecoderLayer, torch.nn.TransformerEncoderLayer
        self.query = torch.nn.ModuleList(decoder(small, 4, 2 * small, **more) for _ in range(hops))
        self.course = torch.nn.ModuleList(encoder(width, 4, 2 * width, **more) for _ in range(layers))
        self.patch_norm = torch.nn.LayerNorm(small)
        self.query_norm = torch.nn.LayerNorm(small)
        self.norm = torch.nn.LayerNorm(width)
        self.widen = torch.nn.Linear(small, width)
        self.shown, self.company = torch.nn.Linear(small, 1), torch.nn.Linear(len(config["colours"]), width)
        self.key = torch.nn.Linear(width, width)
        self.score = torch.nn.Linear(width, 1)
        self.embed = torch.nn.Linear(2 * width + 8 * config["frames"], config["embedding"])
        self.brief, self.persistent = torch.nn.Linear(width, 8), torch.nn.Linear(config["embedding"], 1)

    def look(self, frames, colours, shapes):
        """Frames uint8 [n,T,S,S,3], indices of colours and shapes [n,q] -> tokens of each query in each frame
        [n,q,T,D], logits of each colour being shown, of any shape [n,C,T], and patch tokens [n*T,P,D]."""
        (n, t), q = frames.shape[:2], colours.shape[1] + len(self.colour.weight)
        pixels = frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 64 - 2
        tokens = self.patch_norm(self.stem(pixels).flatten(2).transpose(1, 2))
        queries = self.colour(colours) + self.shape(shapes)
        queries = torch.cat([queries, self.colour.weight.expand(n, -1, -1)], 1)
        patches, x = tokens + self.place, queries.repeat_interleave(t, 0)
        others = ~torch.eye(q, dtype=torch.bool, device=x.device)  # queries do not attend to each other
        for layer in self.query:
            x = layer(x, patches, tgt_mask=others)
        x = self.query_norm(x).unflatten(0, (n, t)).transpose(1, 2)
        return x[:, : colours.shape[1]], self.shown(x[:, colours.shape[1] :])[..., 0], tokens

    def forward(self, frames, colours, shapes):
        """Inputs as of `look` -> {scores [n,q,T], persistence [n,q], shown [n,C,T]: logits; attention
        [n,q,T], sums to 1; embedding [n,q,E]; looked, seen: tokens of the frames before and after attending
        to each other}."""
        looked, shown, _ = self.look(frames, colours, shapes)
        x = (self.widen(looked) + self.time).flatten(0, 1)
        summary = self.summary + self.company(shown.amax(-1).sigmoid())[:, None]
        x = torch.cat([x, summary.repeat_interleave(looked.shape[1], 0)], 1)
        for layer in self.course:
            x = layer(x)
        x = self.norm(x)
        seen, summary = x[:, :-1], x[:, -1]
        attention = (self.key(seen) @ summary[:, :, None])[..., 0].float() / summary.shape[1] ** 0.5
        attention = attention.softmax(-1)
        pooled = (attention[:, None].to(seen.dtype) @ seen)[:, 0]
        embedding = self.embed(torch.cat([summary, pooled, self.brief(seen).flatten(1)], 1))
        found = {
            "scores": self.score(seen)[..., 0],
            "attention": attention,
            "embedding": embedding,
            "persistence": self.persistent(embedding)[:, 0],
        }
        return {"shown": shown, "looked": looked, "seen": seen.unflatten(0, looked.shape[:2])} | {
            k: v.unflatten(0, looked.shape[:2]) for k, v in found.items()
        }

    def save_pretrained(self, folder):
        """config.json and model.safetensors, in the dtype of the weights."""
        from safetensors.torch import save

        config = json.dumps({"model_type": "tracker", **self.config}, indent=1)
        save_text(Path(folder) / "config.json", config)
        weights = {k: v.contiguous() for k, v in self.state_dict().items()}
        save_bytes(Path(folder) / "model.safetensors", save(weights))

    @classmethod
    def from_pretrained(cls, folder):
        from safetensors.torch import load_file

        config = json.loads((Path(folder) / "config.json").read_text())
        model = cls({k: v for k, v in config.items() if k != "model_type"})
        weights = load_file(Path(folder) / "model.safetensors")
        model.load_state_dict({k: v.float() for k, v in weights.items()})
        return model.eval()


def load_tracker(entry, device):
    """The tracker of a folder; exit 2 for another model or a broken folder."""
    if entry["kind"] != "tracker":
        fail(
            f"--model {entry['name']} is a {entry['kind']}, not a tracker; give tiny-tracker, or --embeddings"
        )
    return attempt(lambda: Tracker.from_pretrained(entry["path"]), entry).to(device)


@torch.inference_mode()
def follow(model, frames, names, device):
    """Run a tracker on n clips uint8 [n,T,S,S,3] and q names of each: {scores, attention [n,q,T], persistence
    [n,q]: probabilities, embedding [n,q,E]}, fp32."""
    queries = []
    for k, kind in enumerate(("colours", "shapes")):
        numbers = []
        for row in names:
            numbers.append([model.config[kind].index(name.split()[k]) for name in row])
        queries.append(torch.tensor(numbers, device=device))
    found = model(frames.to(device), *queries)
    found |= {k: found[k].sigmoid() for k in ("scores", "persistence")}
    return {k: found[k].float().cpu() for k in ("scores", "attention", "persistence", "embedding")}
