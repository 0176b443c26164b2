"""`trl-irl average`: the average's weights against those of the models, whole or sharded, and of merged adapters."""

import copy
import json

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tests.conftest import make_model
from trl_irl.commands import average as command
from trl_irl.trainer.runtime.averaging import average


def saved(model, folder, **options):
    model.save_pretrained(folder, **options)
    return str(folder)


def weights_of(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shards", ["1GB", "10KB"])
def test_whole_models(shards, dtype, tokenizer, tmp_path):
    models = [make_model("llama", seed=seed).to(dtype) for seed in range(3)]
    paths = [saved(model, tmp_path / f"{i}", max_shard_size=shards) for i, model in enumerate(models)]
    tokenizer.save_pretrained(paths[0])
    (tmp_path / "0/optimizer.pt").write_text("large")
    (tmp_path / "0/soft_q.json").write_text('{"gamma": 0.9}')
    out = average(paths, [0.5, 0.7, -0.2], str(tmp_path / "out"))
    found = weights_of(out)
    assert found.keys() == models[0].state_dict().keys()
    for name, tensor in found.items():
        parts = [model.state_dict()[name].double() for model in models]
        expected = (0.5 * parts[0] + 0.7 * parts[1] - 0.2 * parts[2]).to(dtype)
        torch.testing.assert_close(tensor, expected, rtol=1e-6 if dtype == torch.float32 else 8e-3, atol=1e-7)
    assert ((out / "model.safetensors.index.json").is_file()) == (shards == "10KB")
    assert AutoTokenizer.from_pretrained(out).get_vocab() == tokenizer.get_vocab()
    assert (out / "soft_q.json").is_file() and not (out / "optimizer.pt").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1", "2", "out"}
    assert out.stat().st_mode == (tmp_path / "0").stat().st_mode  # readable to those who could read the models


def adapter(base, folder, seed, **options):
    """A trained-looking LoRA adapter, and its base with it merged in."""
    torch.manual_seed(seed)
    options = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **options}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **options))
    model.save_pretrained(folder)
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).merge_and_unload()
    return str(folder), merged.state_dict()


@pytest.mark.parametrize(
    "kinds",
    [
        [{}, {}],
        [{"r": 4, "lora_alpha": 3}, {"use_rslora": True, "r": 3}],
        [{"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"layers.0.self_attn.v_proj": 1}}, {"lora_alpha": 5}],
        [{"modules_to_save": ["lm_head"]}, {"modules_to_save": ["lm_head"]}],
        [{"target_modules": ["embed_tokens", "down_proj"]}, {"target_modules": ["embed_tokens", "down_proj"]}],
    ],
    ids=["alike", "rslora", "patterns", "whole_head", "embeddings"],
)
def test_adapters_are_averaged_as_if_they_had_been_merged(kinds, tmp_path):
    base = saved(make_model("llama", tie_word_embeddings=False), tmp_path / "base")
    (first, ours), (second, theirs) = (
        adapter(base, tmp_path / f"adapter{i}", i, **options) for i, options in enumerate(kinds)
    )
    out = average([first, second], [0.3, 0.7], str(tmp_path / "out"))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out).merge_and_unload()
    for name, tensor in model.state_dict().items():
        expected = 0.3 * ours[name].double() + 0.7 * theirs[name].double()
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_a_base_and_an_adapter_of_it(tmp_path, monkeypatch, capsys):
    """What WiSE-FT does to a full fine-tuning; the command, whose weights are alike if none are given."""
    base = saved(make_model("llama"), tmp_path / "base")
    path, merged = adapter(base, tmp_path / "adapter", 0)
    monkeypatch.chdir(tmp_path)
    assert command.run(["--models", "base", path, "--output_dir", "out"]) == 0
    assert "0.500  base" in capsys.readouterr().out
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), "out").merge_and_unload()
    before = weights_of(base)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, (before[name] + merged[name]) / 2, rtol=1e-5, atol=1e-6)
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["base_model_name_or_path"] == base


def test_what_cannot_be_averaged_leaves_nothing_behind(tmp_path):
    paths = {"a": saved(make_model("llama"), tmp_path / "a"), "b": saved(make_model("llama", seed=1), tmp_path / "b")}
    paths["other"] = saved(make_model("llama", num_hidden_layers=1), tmp_path / "other")
    paths["wide"] = saved(make_model("llama", vocab_size=400), tmp_path / "wide")
    paths["lora"], _ = adapter(paths["a"], tmp_path / "lora", 0)
    paths["dora"], _ = adapter(paths["a"], tmp_path / "dora", 0, use_dora=True)
    paths["lora of b"], _ = adapter(paths["b"], tmp_path / "lora_b", 0)
    paths["pissa"], _ = adapter(paths["a"], tmp_path / "pissa", 0, init_lora_weights="pissa")
    paths["olora"], _ = adapter(paths["a"], tmp_path / "olora", 0, init_lora_weights="olora")
    paths["nowhere"] = "nobody/nothing-at-all"
    paths["elsewhere"], _ = adapter(paths["a"], tmp_path / "elsewhere", 0, target_modules=["k_proj"])
    paths["head"], _ = adapter(paths["a"], tmp_path / "head", 0, modules_to_save=["lm_head"])
    ia3 = get_peft_model(
        make_model("llama"), IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
    )
    ia3.peft_config["default"].base_model_name_or_path = paths["a"]
    paths["ia3"] = saved(ia3, tmp_path / "ia3")
    pickled = make_model("llama")
    paths["none"] = str(tmp_path / "none")
    pickled.config.save_pretrained(paths["none"])
    paths["row 5"], _ = adapter(paths["a"], tmp_path / "row5", 0, trainable_token_indices=[5])
    paths["row 6"], _ = adapter(paths["a"], tmp_path / "row6", 0, trainable_token_indices=[6])
    half, before = [0.5, 0.5], {path.name for path in tmp_path.iterdir()}
    for names, weights, error, message in (
        (["a"], [1.0], ValueError, "There are 1 models"),
        (["a", "b"], [1.0], ValueError, "2 models and 1 weights"),
        (["a", "b"], [0.5, 0.6], ValueError, "have the sum 1.1"),
        (["a", "b"], [float("nan"), 0.5], ValueError, "It must be 1"),
        (["a", "other"], half, ValueError, "no versions of one model"),
        (["a", "wide"], half, ValueError, r"is \[300, 16\] in .* and \[400, 16\]"),
        (["a", "none"], half, ValueError, "has no safetensors"),
        (["lora", "dora"], half, ValueError, "LoRA with `use_dora`"),
        (["a", "pissa"], half, ValueError, "`init_lora_weights='pissa'`, which changes the base"),
        (["lora", "olora"], half, ValueError, "`init_lora_weights='olora'`, which changes the base"),
        (["a", "nowhere"], half, OSError, "`models: nobody/nothing-at-all` could not be loaded"),
        (["ia3", "lora"], half, ValueError, "of the kind IA3"),
        (["lora", "lora of b"], half, ValueError, "an average needs one base"),
        (["b", "lora"], half, ValueError, "an average needs one base"),
        (["lora", "elsewhere"], half, ValueError, "are of other layers each"),
        (["a", "head"], half, ValueError, "also holds .*lm_head"),
        (["row 5", "row 6"], half, ValueError, "other rows of the embeddings"),
    ):
        with pytest.raises(error, match=message):
            average([paths[name] for name in names], weights, str(tmp_path / "new"))
        assert {path.name for path in tmp_path.iterdir()} == before
    with pytest.raises(FileExistsError, match="is not empty"):
        average([paths["a"], paths["b"]], half, paths["a"])


def test_shapes_alone_make_no_versions_of_one_model(tokenizer, tmp_path):
    """Other heads and other tokens: with weights 0 and 1 it would not even be the second model."""
    paths = {"a": saved(make_model("llama"), tmp_path / "a"), "b": saved(make_model("llama", seed=1), tmp_path / "b")}
    paths["heads"] = saved(
        make_model("llama", num_attention_heads=1, num_key_value_heads=1, head_dim=16), tmp_path / "heads"
    )
    other = copy.deepcopy(tokenizer)
    merges = json.loads(other.backend_tokenizer.to_str())
    vocabulary = merges["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(merges)), pad_token="<pad>", eos_token="<eos>"
    )
    tokenizer.save_pretrained(paths["a"])
    other.save_pretrained(paths["b"])
    for name, message in (("heads", "`num_attention_heads` is 2 in one and 1"), ("b", "the token '[ab]' is")):
        with pytest.raises(ValueError, match=f"no versions of one model: {message}"):
            average([paths["a"], paths[name]], [0.0, 1.0], str(tmp_path / "out"))
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("left_by", ["soft_q.json", "training_args.bin", None])
def test_texts_end_as_in_what_was_trained(left_by, tokenizer, tmp_path):
    base, tuned = make_model("llama", seed=0).bfloat16(), make_model("llama", seed=1)
    paths = [saved(base, tmp_path / "base"), saved(tuned, tmp_path / "tuned")]
    plain, chat = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
    plain.chat_template, chat.eos_token = None, "<|im_end|>"
    plain.save_pretrained(paths[0])
    chat.save_pretrained(paths[1])
    if left_by:
        (tmp_path / "tuned" / left_by).write_text("{}")
    told = paths[1] if left_by else paths[0]
    with pytest.warns(UserWarning, match=f"write texts otherwise .* the tokenizer and the settings of {told}"):
        out = average(paths, [0.25, 0.75], str(tmp_path / "out"))
    found = AutoTokenizer.from_pretrained(out)
    assert (found.eos_token, found.chat_template) == (
        ("<|im_end|>", tokenizer.chat_template) if left_by else ("<eos>", None)
    )
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert model.dtype == (torch.float32 if left_by else torch.bfloat16)
    expected = 0.25 * base.lm_head.weight.double() + 0.75 * tuned.lm_head.weight.double()
    torch.testing.assert_close(model.lm_head.weight.double(), expected, rtol=1e-2, atol=1e-3)


def test_where_it_may_be_written(tmp_path, monkeypatch):
    """A folder beside it that has a like name is the user's; a link to a folder is one, and so is where one stands."""
    paths = [saved(make_model("llama", seed=seed), tmp_path / f"in/{seed}") for seed in range(2)]
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part/mine").write_text("precious")
    average(paths, [0.5, 0.5], str(tmp_path / "out"))
    assert (tmp_path / "out.part/mine").read_text() == "precious"
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    average(paths, [0.5, 0.5], str(tmp_path / "link"))
    assert (tmp_path / "real/config.json").is_file()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    average(paths, [0.5, 0.5], ".")
    assert (tmp_path / "here/config.json").is_file()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint8])
def test_quantised_weights_have_no_average(dtype, tmp_path):
    from safetensors.torch import load_file, save_file

    paths = []
    for i in range(2):
        paths.append(saved(make_model("llama"), tmp_path / str(i)))
        file = tmp_path / str(i) / "model.safetensors"
        save_file({**load_file(file), "packed": torch.full((4,), i).to(dtype)}, file, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"packed is torch\.(uint8|float8_e4m3fn) and differs.*quantised weights have no average"
    ):
        average(paths, [0.5, 0.5], str(tmp_path / "new"))


def test_how_the_reward_is_read_is_of_the_model_that_says_so(tmp_path):
    """A base, which is often named first, has no settings of a reward."""
    paths = [saved(make_model("llama", seed=seed), tmp_path / f"{seed}") for seed in range(3)]
    for seed, gamma in ((1, 0.9), (2, 0.8)):
        (tmp_path / f"{seed}/soft_q.json").write_text(json.dumps({"gamma": gamma}))
    out = average(paths, [0.3, 0.4, 0.3], str(tmp_path / "out"))
    assert json.loads((out / "soft_q.json").read_text()) == {"gamma": 0.9}
    assert not (average([paths[0], paths[0]], [0.5, 0.5], str(tmp_path / "none")) / "soft_q.json").exists()
