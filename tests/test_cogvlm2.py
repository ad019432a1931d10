"""The CogVLM2 port computes what the original does, at every point, and has exactly the published weights."""

import copy
import json

import pytest
import torch
from conftest import ROOT
from published import COGVLM2, INTERNVL2, internvl2_config
from safetensors.torch import load_file, save_file

import cogvlm2
from families import family_of
from models import find_model, skeleton

GOLDEN = ROOT.parent / "shared" / "golden"
missing = f"{GOLDEN} does not exist: outputs of the original code"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=missing)


@needs_golden
@torch.inference_mode()
def test_every_recorded_point_is_what_the_original_computes():
    folder, seen = GOLDEN / "cogvlm2-tiny-a", {}
    model, g = cogvlm2.CogVLM2.from_pretrained(folder), torch.load(folder / "golden.pt", weights_only=True)
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, a, o, n=name: seen.__setitem__(n, o))
    types = g["token_type_ids"]
    logits = model(input_ids=g["input_ids"], token_type_ids=types, pixels=g["image"][None])
    points = {"patch_embedding": "patch_embedding", "conv": "conv", "adapter": "linear_proj"}
    points |= {f"block_{i}": f"transformer.layers.{i}" for i in range(3)}
    found = {f"vision_{name}": seen[f"model.vision.{path}"] for name, path in points.items()}
    found |= {f"llm_layer_{i}": seen[f"model.layers.{i}"] for i in range(3)}
    found |= {"vision_output": seen["model.vision"], "logits": logits}
    found["position_ids"] = cogvlm2.image_positions(types)
    found["vision_expert_mask"] = cogvlm2.expert_rows(types)
    assert set(found) == set(g["expected"])
    for name, x in g["expected"].items():
        assert found[name].shape == x.shape and (found[name].float() - x.float()).abs().max() < 1e-4, name


@needs_golden
def test_the_weights_at_full_size_are_the_published_ones():
    index = json.loads((GOLDEN / "cogvlm2-index.json").read_text())
    with torch.device("meta"):
        state = cogvlm2.CogVLM2(COGVLM2).state_dict()
    assert set(state) == set(index["weight_map"]) and len(state) == 1221
    assert 2 * sum(x.numel() for x in state.values()) == index["metadata"]["total_size"]


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    vision = COGVLM2["vision_config"] | size | {"num_heads": 2, "num_positions": 17, "image_size": 56}
    heads = {"num_attention_heads": 4, "num_multi_query_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    model = cogvlm2.CogVLM2(COGVLM2 | size | heads | {"vocab_size": 64, "vision_config": vision})
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


@torch.inference_mode()
def test_words_after_a_cache_several_at_a_time_give_the_logits_of_one_pass(small):
    given = small.inputs(torch.randn(2, 3, 56, 56), [9, 8, 7, 6])
    ids, types = given["input_ids"], given["token_type_ids"]
    whole, cache = small(**given), [{}, {}]
    small(ids[:, :-4], types[:, :-4], given["pixels"], cache=cache)
    rest = small(ids[:, -4:], types[:, -4:], position_ids=cogvlm2.image_positions(types)[:, -4:], cache=cache)
    torch.testing.assert_close(rest, whole[:, -4:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(small(**given, logits_to_keep=2), whole[:, -2:], atol=1e-4, rtol=1e-4)
    found = small.generate(ids, types, given["pixels"], max_new_tokens=3)  # with a cache
    ids, types = torch.cat([ids, found[:, :2]], 1), torch.nn.functional.pad(types, (0, 2))
    assert torch.equal(found, small(ids, types, given["pixels"], logits_to_keep=3).argmax(-1))


def test_positions_and_experts_follow_the_image(small):
    types = small.inputs(torch.zeros(1, 3, 56, 56), [5, 6])["token_type_ids"]
    assert cogvlm2.image_positions(types).tolist() == [[0, 1, 2, 2, 2, 2, 3, 4, 5]]
    assert cogvlm2.expert_rows(types).int().tolist() == [[0, 1, 1, 1, 1, 1, 0, 0, 0]]


@torch.inference_mode()
def test_the_images_rows_go_through_the_language_expert_where_asked(small):
    given, same = small.inputs(torch.randn(1, 3, 56, 56), [5, 6]), copy.deepcopy(small)
    state = same.state_dict()
    for name in [name for name in state if "language_expert" in name or "language_mlp" in name]:
        state[name.replace("language", "vision")] = state[name]
        bias = name.replace("language", "vision").replace("weight", "bias")
        if bias in state:
            state[bias] = torch.zeros_like(state[bias])
    same.load_state_dict(state)
    other = copy.deepcopy(small)
    other.expert = "language"
    torch.testing.assert_close(other(**given), same(**given))
    assert (other(**given) - small(**given)).abs().max() > 0.1


def test_a_rows_end_is_kept_while_others_go_on(small, monkeypatch):
    """Scripted logits: the first row ends at once, the second after two tokens; eos fills the first."""
    script = iter([[2, 5], [7, 6], [8, 2]])

    def scripted(*args, **more):
        return 10.0 * torch.nn.functional.one_hot(torch.tensor(next(script)), 64)[:, None]

    monkeypatch.setattr(small, "forward", scripted)
    ids = torch.zeros(2, 3, dtype=torch.long)
    assert small.generate(ids, ids, max_new_tokens=9).tolist() == [[2, 2, 2], [5, 6, 2]]


def test_weights_come_back_from_a_folder_and_a_missing_one_is_named(small, tmp_path):
    small.save_pretrained(tmp_path)
    again, state = cogvlm2.CogVLM2.from_pretrained(tmp_path).state_dict(), small.state_dict()
    assert all(torch.equal(again[k], state[k]) for k in state)
    stored = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in stored.items() if k != "model.norm.weight"}, tmp_path / "model.safetensors")
    with pytest.raises(KeyError, match="model.norm.weight"):
        cogvlm2.CogVLM2.from_pretrained(tmp_path)


def test_internvl2_is_given_its_chat_prompt_where_its_vocabulary_lies_beside_it(tmp_path, capsys):
    config = internvl2_config(
        *(x | {"num_hidden_layers": 1, "vocab_size": 300} for x in INTERNVL2["internvl2"])
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    entry = find_model(str(tmp_path))
    assert skeleton(entry, torch.float32, random_seed=0)[1] is None
    assert "no tokenizer.model" in capsys.readouterr().out
    pieces = ["<unk>", "<s>", "</s>", "[UNUSED_0]", "[UNUSED_1]", *(f"<0x{k:02X}>" for k in range(256))]
    texts = [bytes([0o12, len(x)]) + x.encode() for x in [*pieces, "e", "m", "em"]]
    # protobuf: field 1, a piece, whose field 1 is its text; field 3: no space is put before a text
    vocabulary = b"".join(bytes([0o12, len(x)]) + x for x in texts) + bytes([0o32, 2, 0o30, 0])
    (tmp_path / "tokenizer.model").write_bytes(vocabulary)
    added = {3: "<|im_end|>", 4: "<|im_start|>", 264: "<img>", 265: "</img>", 266: "<IMG_CONTEXT>"}
    added = {"added_tokens_decoder": {k: {"content": x} for k, x in added.items()}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(added))
    model, processor, _ = skeleton(entry, torch.float32, random_seed=0)

    def ids(text):
        return processor.tokenizer(text, add_special_tokens=False).input_ids

    given = family_of(model)(model, processor)[0](torch.zeros(1, 1, 448, 448, 3, dtype=torch.uint8))
    expected = [1, 4, *ids(f"system\n{cogvlm2.SYSTEM}"), 3, 4, *ids("user\n"), 264, *[266] * 256, 265]
    expected += [*ids("\nDescribe the picture."), 3, 4, *ids("assistant\n")]
    assert given["input_ids"].tolist() == [expected] and model.config.image_token_id == 266
    assert ids("item 是") == [5 + ord("i"), 5 + ord("t"), 263, *(5 + byte for byte in "▁是".encode())]
