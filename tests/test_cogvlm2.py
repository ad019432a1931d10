"""The CogVLM2 port computes what the original does, at every point, and has exactly the published weights."""

import json

import pytest
import torch
from conftest import ROOT
from published import COGVLM2

import cogvlm2

GOLDEN = ROOT.parent / "shared" / "golden"
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason=f"{GOLDEN} is not there: outputs of the original come beside the repository"
)


@pytest.fixture(scope="module")
def golden():
    folder = GOLDEN / "cogvlm2-tiny-a"
    return cogvlm2.CogVLM2.from_pretrained(folder), torch.load(folder / "golden.pt", weights_only=True)


def outputs(model, **inputs):
    """{module path: output} of every module in one pass, and the logits."""
    seen = {}
    handles = [
        m.register_forward_hook(lambda m, a, o, n=n: seen.__setitem__(n, o))
        for n, m in model.named_modules()
        if n
    ]
    with torch.inference_mode():
        logits = model(**inputs)
    for h in handles:
        h.remove()
    return seen, logits


@needs_golden
def test_every_recorded_point_is_what_the_original_computes(golden):
    model, g = golden
    seen, logits = outputs(
        model, input_ids=g["input_ids"], token_type_ids=g["token_type_ids"], pixels=g["image"][None]
    )
    points = {"patch_embedding": "patch_embedding", "conv": "conv", "adapter": "linear_proj"}
    points |= {f"block_{i}": f"transformer.layers.{i}" for i in range(3)}
    found = {f"vision_{name}": seen[f"model.vision.{path}"] for name, path in points.items()}
    found |= {f"llm_layer_{i}": seen[f"model.layers.{i}"] for i in range(3)}
    found |= {"vision_output": seen["model.vision"], "logits": logits}
    found["position_ids"] = cogvlm2.image_positions(g["token_type_ids"])
    found["vision_expert_mask"] = cogvlm2.expert_rows(g["token_type_ids"])
    assert set(found) == set(g["expected"])
    for name, x in g["expected"].items():
        assert found[name].shape == x.shape and (found[name].float() - x.float()).abs().max() < 1e-4, name


@needs_golden
def test_generating_with_a_cache_is_generating_without(golden):
    model, g = golden
    types, ids = g["token_type_ids"].repeat(2, 1), g["input_ids"].repeat(2, 1)
    ids[1, -1] = 7
    pixels = torch.stack([g["image"], g["image"].flip(-1)])
    found = model.generate(ids, types, pixels, max_new_tokens=6)
    expected = []
    for _ in range(found.shape[1]):
        with torch.inference_mode():
            token = model(ids, types, pixels)[:, -1].argmax(-1, keepdim=True)
        expected.append(token)
        ids, types = torch.cat([ids, token], 1), torch.cat([types, torch.zeros_like(token)], 1)
    assert torch.equal(found, torch.cat(expected, 1)) and found.shape == (2, 6)


@needs_golden
def test_the_weights_at_full_size_are_the_published_ones():
    index = json.loads((GOLDEN / "cogvlm2-index.json").read_text())
    with torch.device("meta"):
        state = cogvlm2.CogVLM2(COGVLM2).state_dict()
    assert set(state) == set(index["weight_map"]) and len(state) == 1221
    assert 2 * sum(x.numel() for x in state.values()) == index["metadata"]["total_size"]


def small():
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    vision = COGVLM2["vision_config"] | size | {"num_heads": 2, "num_positions": 17, "image_size": 56}
    heads = {"num_attention_heads": 4, "num_multi_query_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    model = cogvlm2.CogVLM2(COGVLM2 | size | heads | {"vocab_size": 64, "vision_config": vision})
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def test_text_after_an_image_does_not_change_its_rows():
    model, pixels = small(), torch.randn(2, 3, 56, 56)
    short, long = (
        outputs(model, **model.inputs(pixels, text))[0]["model.layers.1"][:, 1:7]
        for text in ([5], [9, 8, 7, 6])
    )
    assert torch.allclose(short, long, atol=1e-6)


@torch.inference_mode()
def test_words_that_come_several_at_a_time_after_a_cache_see_what_they_would_in_one_pass():
    model = small()
    given = model.inputs(torch.randn(2, 3, 56, 56), [9, 8, 7, 6])
    ids, types = given["input_ids"], given["token_type_ids"]
    whole, cache = model(**given), [{}, {}]
    model(ids[:, :-4], types[:, :-4], given["pixels"], cache=cache)
    rest = model(ids[:, -4:], types[:, -4:], position_ids=cogvlm2.image_positions(types)[:, -4:], cache=cache)
    torch.testing.assert_close(rest, whole[:, -4:], atol=1e-4, rtol=1e-4)


def test_positions_and_experts_follow_the_image():
    given = small().inputs(torch.zeros(1, 3, 56, 56), [5, 6])
    assert cogvlm2.image_positions(given["token_type_ids"]).tolist() == [[0, 1, 2, 2, 2, 2, 3, 4, 5]]
    assert cogvlm2.expert_rows(given["token_type_ids"]).int().tolist() == [[0, 1, 1, 1, 1, 1, 0, 0, 0]]


def test_a_folder_that_lacks_a_weight_is_named(tmp_path):
    from safetensors.torch import save_file

    model = small()
    config = {k: vars(v) if k == "vision_config" else v for k, v in vars(model.config).items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    again = cogvlm2.CogVLM2.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[k], state[k]) for k in state)
    save_file({k: v for k, v in state.items() if k != "model.norm.weight"}, tmp_path / "model.safetensors")
    with pytest.raises(KeyError, match="model.norm.weight"):
        cogvlm2.CogVLM2.from_pretrained(tmp_path)
