"""Speed on a GPU as ratios against named peers, with networks of full size and random weights: speed and memory do not depend on the values.

    python tests/bench_gpu.py                                   every row, results/bench-gpu.yaml
    python tests/bench_gpu.py windows exit                      some rows; the others stay in the file as they are
    python tests/bench_gpu.py --folder /disk stream-cogvlm2     keep the checkpoint (39 GB) there for the next time
    python tests/bench_gpu.py --small --out small.yaml          small networks, any device: the code, not the numbers

windows          Qwen2.5-VL's vision tower with equal attention windows in one call, against transformers' sdpa path, window by window
exit             Qwen2.5-VL-7B up to the middle language layer, against output_hidden_states=True; and what share of a matrix product's rate it reaches
stream-cogvlm2   CogVLM2-19B streamed within 15 GB of the GPU, against accelerate's offload picture by picture, and against all layers resident
stream-internvl2 the same with InternVL2-26B in its original layout (51 GB)
memory           the peak of a training step of Qwen2.5-VL-7B under LoRA with checkpoints, against what tune.py plan says of it
writing          Qwen2.5-VL-7B's features written by the writer's thread, against not writing and against writing in between

Needs no network. A row in which two ways that must agree do not ends the run with exit code 1; a target that is missed is only recorded.
"""

import argparse
import contextlib
import gc
import json
import shutil
import statistics
import sys
import tempfile
import time
import types
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bench  # makes the scripts above importable too
import published

import common
import extract
import families
import training
import tune

STARTED = time.time()
CAP = 15e9  # bytes of the GPU that a streamed run may take: what a T4 has to give


def note(*words):
    print(f"{time.time() - STARTED:7.1f} s", *words, flush=True)


def free_memory():
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def timed(device, call):
    """(seconds, what it returned), the device idle before and after."""
    extract.wait_for(device)
    started = time.perf_counter()
    found = call()
    extract.wait_for(device)
    return time.perf_counter() - started, found


def race(device, ours, theirs, aim, same, rounds, **more):
    """A row: in turn, after a warm-up of each."""
    ours(), theirs()
    return bench.judged(
        *bench.in_turn(
            {"ours": lambda: timed(device, ours), "theirs": lambda: timed(device, theirs)}, rounds
        ).values(),
        aim,
        same,
        **more,
    )


# ---------------------------------------------------------------- networks


def smaller(config, vision, text):
    return (
        config
        | {"vision_config": config["vision_config"] | vision, "text_config": config["text_config"] | text}
        | {
            f"{name}_token_id": 100 + i
            for i, name in enumerate(("image", "video", "vision_start", "vision_end"))
        }
    )


QWEN = {
    False: published.QWEN2_5_VL_7B,
    True: smaller(
        published.QWEN2_5_VL_7B,
        {
            "depth": 4,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1, 3],
        },
        {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": 128,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
        },
    ),
}
PIXELS = 448


def name_of(at):
    return "a small Qwen2.5-VL" if at.small else "Qwen2.5-VL-7B"


def qwen(small, device, dtype):
    """Qwen2.5-VL-7B with untrained weights, made on the device."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    with torch.device(device):
        return (
            Qwen2_5_VLForConditionalGeneration._from_config(
                Qwen2_5_VLConfig(**QWEN[small]), dtype=dtype, attn_implementation="sdpa"
            )
            .eval()
            .requires_grad_(False)
        )


def qwen_inputs(config, frames):
    """What the model takes for pictures uint8 [n,1,448,448,3]: made here, for the processor's vocabulary is on the hub. Patches in any order will do."""
    c = config["vision_config"]
    side = frames.shape[2] // c["patch_size"]
    # a still picture is shown twice
    patches = (frames.flatten(0, 1).float() / 127.5 - 1).reshape(len(frames) * side * side, -1).repeat(1, 2)
    ids = torch.tensor(
        [
            config["vision_start_token_id"],
            *[config["image_token_id"]] * (side // 2) ** 2,
            config["vision_end_token_id"],
            *range(16),
        ]
    ).expand(len(frames), -1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": patches,
        "image_grid_thw": torch.tensor([[1, side, side]]).expand(len(frames), -1),
        "mm_token_type_ids": (ids == config["image_token_id"]).long(),
    }


def noise(n, side):
    return torch.randint(
        0, 256, (n, 1, side, side, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )


COGVLM2 = {
    False: published.COGVLM2,
    True: published.COGVLM2
    | {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_multi_query_heads": 2,
        "bos_token_id": 1,
        "eos_token_id": [2],
        "vision_config": published.COGVLM2["vision_config"]
        | {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 2,
            "num_hidden_layers": 4,
            "num_positions": 17,
            "image_size": 56,
        },
    },
}
INTERNVL2 = {
    False: published.INTERNVL2["internvl2-26b"],
    True: tuple(
        part
        | {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
        | more
        for part, more in zip(
            published.INTERNVL2["internvl2-26b"],
            ({}, {"num_key_value_heads": 2, "vocab_size": 512}),
            strict=True,
        )
    ),
}


def cogvlm2_checkpoint(small):
    """(config.json, {name: shape}, tokenizer) in the hub's layout."""
    from cogvlm2 import CogVLM2
    from tiny import vlm_processor

    with torch.device("meta"):
        shapes = {name: tuple(x.shape) for name, x in CogVLM2(COGVLM2[small]).state_dict().items()}
    return (
        {"architectures": ["CogVLMForCausalLM"], **COGVLM2[small]},
        shapes,
        vlm_processor([f"Question: {families.PROMPT} Answer:"]).tokenizer,
    )


def internvl2_checkpoint(small):
    vision, text = INTERNVL2[small]
    side = 56 if small else PIXELS
    return (
        published.internvl2_config(vision, text, side),
        published.internvl2_layout(vision, text, side),
        None,
    )


def random_weight(name, shape, device):
    """bf16. Scales one and biases zero, so that nothing overflows; matrices N(0, 0.02^2)."""
    if name.endswith("inv_freq"):
        from cogvlm2 import Rotary

        return Rotary(2 * shape[0]).inv_freq.bfloat16()
    if len(shape) == 1:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, 0.02).cpu()


def written(folder, made, device, most):
    """The folder with a checkpoint of random weights in the hub's layout; one file of `most` bytes is held at a time, and a complete folder is left as it is."""
    from safetensors.torch import save_file

    config, shapes, tokenizer = made
    total = sum(2 * torch.Size(shape).numel() for shape in shapes.values())
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        note(f"{folder} is there")
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < 1.02 * total:
        common.refuse(
            f"{folder} needs {total / 1e9:.0f} GB and there are {shutil.disk_usage(folder).free / 1e9:.0f}; give another --folder, or delete a checkpoint that is there"
        )
    groups, held = [[]], 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        if groups[-1] and held + size > most:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    torch.manual_seed(0)
    where = {}
    for k, names in enumerate(groups):
        file = f"model-{k + 1:05d}-of-{len(groups):05d}.safetensors"
        save_file(
            {name: random_weight(name, shapes[name], device) for name in names},
            folder / file,
            metadata={"format": "pt"},
        )
        where |= dict.fromkeys(names, file)
        note(f"wrote {file} in {folder}")
    if tokenizer:
        tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}))
    return folder


# ---------------------------------------------------------------- rows


def batched_windows(self, hidden_states, cu_seqlens, position_embeddings=None, **kwargs):
    """Qwen2.5-VL's vision attention with equal windows as one batch; transformers' own forward where they are not equal. A candidate for extract.py if it earns 1.3x."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

    lengths = cu_seqlens.diff()
    if not (lengths == lengths[0]).all():
        return type(self).forward(
            self, hidden_states, cu_seqlens=cu_seqlens, position_embeddings=position_embeddings, **kwargs
        )
    # each [rows, heads, d]
    q, k, v = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
    q, k = apply_rotary_pos_emb_vision(q, k, *position_embeddings)
    # [windows, heads, rows of a window, d]
    q, k, v = (x.unflatten(0, (len(lengths), -1)).transpose(1, 2) for x in (q, k, v))
    x = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=self.scaling)
    return self.proj(x.transpose(1, 2).reshape(len(hidden_states), -1))


def windows(at):
    """In fp32 the outputs must agree to 1e-5 of their largest value; the ratio that counts is the one in the device's own dtype."""
    from transformers import Qwen2_5_VLConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
        Qwen2_5_VisionTransformerPretrainedModel as Tower,
    )

    batch, rows, found = 2 if at.small else 16, 3 if at.small else 10, {}
    given = qwen_inputs(QWEN[at.small], noise(batch, PIXELS))
    for dtype in dict.fromkeys((torch.float32, at.dtype)):
        torch.manual_seed(0)
        with torch.device(at.device):
            tower = (
                Tower._from_config(
                    Qwen2_5_VLConfig(**QWEN[at.small]).vision_config, dtype=dtype, attn_implementation="sdpa"
                )
                .eval()
                .requires_grad_(False)
            )
        inputs = {
            "hidden_states": given["pixel_values"].to(at.device, dtype),
            "grid_thw": given["image_grid_thw"].to(at.device),
        }
        points = {"last": f"blocks.{len(tower.blocks) - 1}", "merger": "merger"}

        def run(own, tower=tower, inputs=inputs, points=points):
            for block in tower.blocks:
                block.attn.__dict__.pop("forward", None)
                if own:
                    block.attn.forward = types.MethodType(batched_windows, block.attn)
            return extract.capture(tower, inputs, points)

        ours, theirs = run(True), run(False)
        apart = max(
            ((ours[p].float() - theirs[p].float()).abs().max() / theirs[p].float().abs().max()).item()
            for p in points
        )
        name = str(dtype).removeprefix("torch.")
        found[name] = race(
            at.device,
            lambda run=run: run(True),
            lambda run=run: run(False),
            1.3,
            apart <= 1e-5 or dtype != torch.float32,
            rows,
            difference=apart,
            what=f"Qwen2.5-VL's vision tower, {name}, {batch} pictures of {PIXELS} px",
            peer="transformers sdpa, a call for each window",
        )
        note("windows", name, common.plain(found[name]))
        del tower, ours, theirs, run
        free_memory()
    return found


def gemm_rate(device, dtype, side, rounds):
    """FLOP/s of one large matrix product."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    times = [timed(device, lambda: a @ b)[0] for _ in range(rounds + 3)][3:]
    return 2 * side**3 / statistics.median(times)


def early_exit(at):
    from torch.utils.flop_counter import FlopCounterMode

    model, batch, rounds = qwen(at.small, at.device, at.dtype), 2 if at.small else 8, 3 if at.small else 7
    layers = len(model.model.language_model.layers)
    given = families.on(qwen_inputs(QWEN[at.small], noise(batch, PIXELS)), at.device, at.dtype)
    depths = (0, layers // 4 - 1, layers // 2 - 1)
    points = {f"language.{i}": f"model.language_model.layers.{i}" for i in depths}

    @torch.inference_mode()
    def whole():
        return model(**given, output_hidden_states=True).hidden_states

    ours, theirs = extract.capture(model, given, points), whole()
    same = all(torch.equal(ours[f"language.{i}"], theirs[i + 1]) for i in depths)
    del ours, theirs
    what = f"{name_of(at)}, {batch} pictures of {PIXELS} px, exit at language layer {layers // 2} of {layers}"
    row = race(
        at.device,
        lambda: extract.capture(model, given, points),
        whole,
        1.7,
        same,
        rounds,
        peer="transformers output_hidden_states=True",
        what=what,
    )
    with FlopCounterMode(display=False) as counter:
        extract.capture(model, given, points)
    side = 256 if at.small else 8192
    rate = gemm_rate(at.device, at.dtype, side, rounds)
    reached = counter.get_total_flops() / row["seconds"]
    share = {
        "ratio": reached / rate,
        "aim": 0.5,
        "met": bool(reached >= 0.5 * rate),
        "same_numbers": True,
        "tflops": reached / 1e12,
        "peer_tflops": rate / 1e12,
        "tflop": counter.get_total_flops() / 1e12,
        "peer": f"a matrix product of {side} x {side} x {side} in the same dtype",
        "what": what,
    }
    return {"forward": row, "gemm": share}


def streaming(name, made, small_side, full_side, pictures, batch):
    """A row function: layers streamed within CAP, against accelerate's offload of the same files picture by picture, and against all layers resident.

    Seconds are those of a picture: accelerate's do not depend on how many there are, so it is shown few of them. One network is in memory at a time, and each is made anew for
    every round, which is not counted; the first round is the warm-up. Features of equal micro-batches must be the same to the bit.
    """

    def row(at):
        side, n, per, few, rounds = (
            (small_side, 6, 2, 2, 1) if at.small else (full_side, pictures, batch, 2, 2)
        )
        with contextlib.ExitStack() as stack:
            parent = Path(at.folder or stack.enter_context(tempfile.TemporaryDirectory()))
            folder = written(
                parent / f"{name}{'-small' if at.small else ''}",
                made(at.small),
                at.device,
                1e5 if at.small else 4e9,
            )
            layers = len(
                [
                    p
                    for p in bench.network_of(folder, "language.0", "cpu", at.dtype)[2]
                    if p.startswith("language.")
                ]
            )
            deepest = f"language.{layers // 2 - 1}"
            frames = noise(n, side)

            def fresh(capped):
                free_memory()
                if at.device.type == "cuda":
                    torch.cuda.set_per_process_memory_fraction(1.0, at.device)
                network, inputs_of, points = bench.network_of(folder, deepest, at.device, at.dtype)
                limit = common.memory_left(at.device, CAP if capped and at.device.type == "cuda" else None)
                return network, inputs_of, {p: points[p][0] for p in ("merger", deepest)}, limit

            def stream(size):
                network, inputs_of, points, limit = fresh(True)
                network.fill([])
                budget = (limit - network.bytes(network.largest(2))) / 2
                return timed(
                    at.device,
                    lambda: bench.streamed(
                        network, points, [inputs_of(f) for f in frames.split(size)], budget
                    ),
                )

            def accelerate():
                network, inputs_of, points, _ = fresh(True)
                bench.offloaded(network)
                return timed(
                    at.device,
                    lambda: bench.one_after_another(
                        network, points, [inputs_of(f) for f in frames[:few].split(1)]
                    ),
                )

            def resident():
                network, inputs_of, points, _ = fresh(False)
                network.fill(network.wanted)
                return timed(
                    at.device,
                    lambda: bench.one_after_another(
                        network, points, [inputs_of(f) for f in frames.split(per)]
                    ),
                )

            network, _, _, limit = fresh(False)
            sides = {
                "streamed_1": (lambda: stream(1), n),
                "accelerate": (accelerate, few),
                "streamed": (lambda: stream(per), n),
            }
            whole = network.bytes(network.wanted)
            del network
            if 1.2 * whole < limit:
                sides["resident"] = resident, n
            else:
                note(
                    f"{name}: {whole / 1e9:.1f} GB are not resident in {limit / 1e9:.1f}; that row is left out"
                )
            took, features, peaks = {side: [] for side in sides}, {}, {}
            for r in range(rounds + 1):
                for side_, (call, count) in sides.items():
                    free_memory()
                    if at.device.type == "cuda":
                        torch.cuda.reset_peak_memory_stats(at.device)
                    seconds, found = call()
                    features.setdefault(side_, found)
                    peaks[side_] = (
                        torch.cuda.max_memory_reserved(at.device) / 1e9 if at.device.type == "cuda" else None
                    )
                    note(
                        f"{name} {side_}: {seconds / count:.3f} s a picture ({count}), {'warm-up' if not r else f'round {r}'}, peak {peaks[side_]} GB"
                    )
                    if r:
                        took[side_].append(seconds / count)
            if at.device.type == "cuda":
                torch.cuda.set_per_process_memory_fraction(1.0, at.device)

            def judged(ours, theirs, aim, size, peer):
                ours_, theirs_ = features[ours], features[theirs]
                apart = bench.difference(ours_[: len(theirs_)], theirs_)
                assert all(x.isfinite().all() for seen in ours_ for x in seen.values())
                return bench.judged(
                    took[ours],
                    took[theirs],
                    aim,
                    apart == 0,
                    difference=apart,
                    peer=peer,
                    cap_gb=CAP / 1e9,
                    peak_gpu_gb=peaks[ours],
                    peer_peak_gpu_gb=peaks[theirs],
                    weights_gb=whole / 1e9,
                    what=f"{name} of {layers} language layers up to layer {layers // 2}, {n} pictures of {side} px, micro-batches of {size}, seconds a picture",
                )

            rows = {
                "accelerate": judged(
                    "streamed_1",
                    "accelerate",
                    5,
                    1,
                    f"accelerate's offload of the same safetensors, warm, {few} pictures one by one",
                )
            }
            if "resident" in sides:
                rows["resident"] = judged("streamed", "resident", 0.8, per, "all layers in the GPU's memory")
            return rows

    return row


def memory(at):
    """Two steps on a picture with 64 answer tokens; the ratio is measured / planned (on a CPU nothing measures it, and it is 1)."""
    config, side = QWEN[at.small], 112 if at.small else PIXELS
    model = qwen(at.small, at.device, at.dtype)
    how = {
        "method": "lora",
        "vision": "frozen",
        "rank": 16,
        "checkpoint": True,
        "adam8bit": False,
        "batch": 1,
        "accumulate": 1,
    }
    taught, _ = tune.teachable(model, how, (at.device.type, at.dtype if at.device.type == "cuda" else None))
    inputs = {k: v.to(at.device) for k, v in qwen_inputs(config, noise(1, side)).items()}
    text = torch.arange(16, 80, device=at.device)[None] % 100
    inputs |= {
        "input_ids": torch.cat([inputs["input_ids"], text], 1),
        "attention_mask": torch.ones(
            1, inputs["input_ids"].shape[1] + 64, dtype=torch.long, device=at.device
        ),
        "mm_token_type_ids": torch.cat([inputs["mm_token_type_ids"], 0 * text], 1),
    }
    labels = torch.cat([torch.full_like(inputs["input_ids"][:, :-64], -100), text], 1)
    optimizer = torch.optim.AdamW(training.learned(taught).values())
    taught.to(at.device).train()
    free_memory()
    if at.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(at.device)
    for _ in range(2):
        loss = taught(inputs, labels)[0].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.isfinite()
    t, v = config["text_config"], config["vision_config"]
    width = t["hidden_size"] // t["num_attention_heads"]
    shape = {
        "layers": t["num_hidden_layers"],
        "d": t["hidden_size"],
        "q": t["hidden_size"],
        "kv": width * t["num_key_value_heads"],
        "inter": t["intermediate_size"],
        "vocab": t["vocab_size"],
        "heads": t["num_attention_heads"],
        "rest": 2 * t["vocab_size"] * t["hidden_size"],
    }
    shape["linear"] = shape["layers"] * (
        2 * shape["d"] * (shape["q"] + shape["kv"]) + 3 * shape["d"] * shape["inter"]
    )
    seen = sum(p.numel() for p in model.model.visual.parameters())
    shape["tower"] = {
        "layers": v["depth"],
        "d": v["hidden_size"],
        "inter": v["intermediate_size"],
        "patch": v["patch_size"],
        "merge": 2,
        "weights": seen,
    }
    planned = sum(
        tune.memory(shape, "lora", labels.shape[1], 64, len(inputs["pixel_values"]), context=0).values()
    )
    measured = torch.cuda.max_memory_allocated(at.device) if at.device.type == "cuda" else None
    ratio = measured / planned if measured else 1.0
    return {
        "lora": {
            "ratio": ratio,
            "aim": 1.15,
            "met": 1 / 1.15 <= ratio <= 1.15,
            "same_numbers": True,
            "planned_gb": planned / 1e9,
            "measured_gb": measured and measured / 1e9,
            "what": f"peak of a LoRA step of {name_of(at)}, {labels.shape[1]} tokens",
            "peer": "tune.py plan",
        }
    }


def writing(at):
    """Features of every default point, 64 pictures a shard, as extract.py computes and stores them."""
    model = qwen(at.small, at.device, at.dtype)
    _, points, *_ = families.family_of(model)(model, None)
    modules = {p: points[p][0] for p in families.quarters(points)}
    n, batch, rounds = (130, 32, 1) if at.small else (256, 8, 3)
    items = [
        {"id": str(i), "source": str(i), "frames": f}
        for i, f in enumerate(noise(n, 56 if at.small else PIXELS))
    ]
    side = items[0]["frames"].shape[1]

    def restore(point, x, given):
        return points[point][1](x, given)

    def finish(shard, seconds):
        shard.add_pixels(lambda step: 2 * step)
        shard.finish(modules, seconds)

    def extraction(out, write):
        with extract.watching(model, modules) as run:
            shards = (
                extract.Shard(
                    out, s, items[s * common.SHARD : (s + 1) * common.SHARD], side, batch, modules, write
                )
                for s in range(-(-n // common.SHARD))
            )
            extract.one_by_one(
                run,
                lambda frames: qwen_inputs(QWEN[at.small], frames),
                restore,
                shards,
                at.device,
                at.dtype,
                finish,
            )

    def in_thread(out):
        with extract.Writer() as write:
            extraction(out, write)

    ways = {
        "thread": in_thread,
        "none": lambda out: extraction(out, lambda *args, **kwargs: None),
        "between": lambda out: extraction(out, common.save_pt),
    }
    took = {way: [] for way in ways}
    with tempfile.TemporaryDirectory(dir=at.folder) as folder:
        for r in range(rounds + 1):
            for way, call in ways.items():
                shutil.rmtree(Path(folder) / way, ignore_errors=True)
                seconds, _ = timed(at.device, lambda call=call, way=way: call(Path(folder) / way))
                note(f"writing {way}: {seconds:.2f} s, {'warm-up' if not r else f'round {r}'}")
                if r:
                    took[way].append(seconds)
        files = {
            way: sorted(f.relative_to(Path(folder) / way) for f in (Path(folder) / way).rglob("*.pt"))
            for way in ("thread", "between")
        }
        same = (
            files["thread"] == files["between"]
            and len(files["thread"]) == (len(modules) + 2) * -(-n // common.SHARD)
            and all(
                torch.equal(
                    *(common.load_pt(Path(folder) / way / f, common.FEATURES)["features"] for way in files)
                )
                for f in files["thread"]
                if f.parts[0] != "pooled"
            )
        )
        size = sum((Path(folder) / "thread" / f).stat().st_size for f in files["thread"])
    more = {
        "what": f"{name_of(at)}, {n} pictures of {side} px, {len(modules)} points",
        "written_gb": size / 1e9,
        "gb_per_second": size / 1e9 / statistics.median(took["thread"]),
    }
    return {
        "free": bench.judged(took["thread"], took["none"], 1 / 1.05, same, peer="nothing is written", **more),
        "thread": bench.judged(
            took["thread"], took["between"], 1.2, same, peer="written in between by the same thread", **more
        ),
    }


ROWS = {
    "windows": windows,
    "exit": early_exit,
    "stream-cogvlm2": streaming("cogvlm2", cogvlm2_checkpoint, 56, 1344, 64, 2),
    "stream-internvl2": streaming("internvl2-26b", internvl2_checkpoint, 56, PIXELS, 384, 8),
    "memory": memory,
    "writing": writing,
}


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)} (default: all)")
    p.add_argument(
        "--folder",
        help="where checkpoints and features are written; checkpoints stay there (default: a temporary folder, emptied after each row)",
    )
    p.add_argument("--out", help="default: results/bench-gpu.yaml, with --small none")
    p.add_argument("--small", action="store_true", help="small networks, any device")
    args = p.parse_args(argv)
    args.device, args.dtype, why = common.choose_device()
    if args.device.type != "cuda" and not args.small:
        common.refuse("there is no CUDA device here; --small runs the same code with small networks anywhere")
    if args.folder:
        Path(args.folder).mkdir(parents=True, exist_ok=True)
    out = Path(args.out) if args.out else None if args.small else bench.ROOT / "results" / "bench-gpu.yaml"
    for name in args.rows:
        common.known(name, ROWS, "row")
    if out:
        common.check_writable(out)
    import transformers

    rows = common.load_yaml(out, "bench-gpu")["rows"] if out and out.is_file() else {}
    mine = []
    for name in args.rows or ROWS:
        note(f"{name}: {why}")
        started = time.time()
        found = {f"{name}_{k}".replace("-", "_"): r for k, r in ROWS[name](args).items()}
        for key, r in found.items():
            rows[key] = common.plain(
                r
                | {
                    "small": args.small,
                    "device": why,
                    "torch": str(torch.__version__),
                    "transformers": transformers.__version__,
                    "row_seconds": time.time() - started,
                }
            )
            note(key, rows[key])
        mine += found
        if out:
            common.save_yaml(
                out,
                {"stage": "bench-gpu", **{f"{k}_ratio": r["ratio"] for k, r in rows.items()}, "rows": rows},
            )
        free_memory()
    width = max(map(len, mine))
    for key in mine:
        r = rows[key]
        print(
            f"{key:{width}s}  {r['ratio']:8.3f}  aim {r['aim']:5.2f}  {'met' if r['met'] else 'missed':6s}  same numbers {r['same_numbers']}  {r['what']} | {r['peer']}"
        )
    if wrong := [key for key in mine if not rows[key]["same_numbers"]]:
        print(f"error: {', '.join(wrong)}: two ways that must agree do not", file=sys.stderr)
        raise SystemExit(1)
    return {key: rows[key] for key in mine}


if __name__ == "__main__":
    main()
