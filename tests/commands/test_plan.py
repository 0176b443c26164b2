"""The `plan` command: recipes, what they say of their hardware, and what is refused."""

import json
import re

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from trl_irl.commands.console.recipe_file import find_recipe, shipped_recipes
from trl_irl.commands.plan import PlanArguments, _setting, filled, make_parser, run
from trl_irl.commands.recipes import described, program_of
from trl_irl.planning.gpus import gpu_of
from trl_irl.planning.plan import options


# As their makers publish them.
CONFIGS = {
    "Qwen/Qwen2.5-0.5B": ("qwen2", 896, 4864, 24, 14, 2, 151936, True),
    "Qwen/Qwen2.5-7B": ("qwen2", 3584, 18944, 28, 28, 4, 152064, False),
    "meta-llama/Llama-3.2-3B": ("llama", 3072, 8192, 28, 24, 8, 128256, True),
    "meta-llama/Llama-3.2-1B": ("llama", 2048, 8192, 16, 32, 8, 128256, True),
    "EleutherAI/pythia-410m": ("gpt_neox", 1024, 4096, 24, 16, 16, 50304, False),
}
BY_KEY = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
BY_KEY += ("num_key_value_heads", "vocab_size", "tie_word_embeddings")
RECIPES = {
    name: path
    for name, path in shipped_recipes().items()
    if program_of(path) == "trl-irl irl" and re.match(r"1 (consumer )?GPU of 24 GB", described(path)[0])
}


def config_of(model):
    from transformers import AutoConfig

    values = dict(zip(BY_KEY, CONFIGS[model.removesuffix("-Instruct").removesuffix("-deduped")], strict=True))
    return AutoConfig.for_model(values.pop("model_type"), **values)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    values = dict(zip(BY_KEY, ("llama", 64, 128, 2, 4, 2, 100, True), strict=True))
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.any_trl
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_the_hardware_that_it_names(name):
    arguments = filled(PlanArguments(recipe=str(RECIPES[name])))
    if arguments.model_name_or_path.startswith("google/"):
        pytest.skip("an encoder-decoder, which `plan` refuses")
    (option,) = options(
        config_of(arguments.model_name_or_path), _setting(arguments, arguments.method), 1, gpu_of("24")
    )
    assert option.fits, option.memory.in_gib()


def test_recipes_of_each_method_are_among_them():
    methods = {filled(PlanArguments(recipe=str(path))).method for path in RECIPES.values()}
    assert methods == {"full", "lora", "qlora"}


def test_a_recipe_and_what_is_given_beside_it():
    found = filled(PlanArguments(recipe="gsm8k/irl_qlora", max_length=2048))
    assert (found.method, found.per_device_train_batch_size, found.max_length) == ("qlora", 4, 2048)
    assert found.lora_r == 32 and found.lora_target_modules == ["all-linear"] and found.logit_buffer_mb == 128


def test_a_recipe_whose_buffer_is_what_is_free(tmp_path):
    text = find_recipe("gsm8k/irl_qlora").read_text(encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(text + "logit_buffer_mb: auto\n", encoding="utf-8")
    assert filled(PlanArguments(recipe=str(tmp_path / "recipe.yaml"))).logit_buffer_mb == 128


def test_all_launchers_and_methods(model, capsys):
    assert run(["--model_name_or_path", str(model), "--gpus", "4", "--gpu", "rtx-4090"]) == 0
    text = capsys.readouterr().out
    rows = [line.split()[:2] for line in text.splitlines() if line.startswith(("full", "lora", "qlora"))]
    sharded = ["zero3", "fsdp2"]
    expected = [[method, one] for method in ("full", "lora") for one in ["ddp", "zero2", *sharded]]
    assert rows == expected + [["qlora", "ddp"], ["qlora", "zero2"]]  # the trainer refuses the others
    assert "30% of 165 TFLOP/s" in text and "too much" not in text


def test_a_config_file_and_one_gpu(model, capsys):
    words = ["--model_name_or_path", str(model / "config.json"), "--gpu", "0.9", "--method", "full"]
    assert run(words) == 0
    text = capsys.readouterr().out
    assert "single_gpu" in text and "too much" in text and "Nothing fits" in text and "seconds" not in text


def test_rows_beyond_the_context_are_named(model, capsys):
    words = ["--model_name_or_path", str(model), "--method", "full", "--max_length"]
    context = AutoConfig.from_pretrained(model).max_position_embeddings
    assert run([*words, str(context)]) == 0 and "context of" not in capsys.readouterr().out
    assert run([*words, str(context + 1)]) == 0
    assert f"longer than the model's context of {context} tokens" in capsys.readouterr().out


def test_more_gpus_and_more_tokens(model):
    def total(launcher, **given):
        arguments = filled(PlanArguments(model_name_or_path=str(model), **given))
        found = options(AutoConfig.from_pretrained(model), _setting(arguments, "full"), arguments.gpus, gpu_of("24"))
        return next(one.memory.total for one in found if one.launcher == launcher)

    assert total("zero3", gpus=8) < total("zero3", gpus=2) < total("ddp", gpus=2)
    assert total("single_gpu", max_length=512) < total("single_gpu", max_length=1024)
    assert total("single_gpu", optim="adamw_8bit") < total("single_gpu")
    assert total("single_gpu", lambda_kl=0.1) > total("single_gpu")
    assert total("single_gpu", value_origin="reference") == total("single_gpu", lambda_kl=0.1)
    assert total("single_gpu", gradient_accumulation_steps=4) > total("single_gpu")
    assert total("ddp", gpus=2, gradient_accumulation_steps=4) > total("ddp", gpus=2)
    # FSDP2 leaves a reference in the dtype of its weights, DeepSpeed casts it.
    whole_model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    weights = 4 * sum(p.numel() for p in whole_model.parameters()) / 2
    for launcher, whole, half in (("fsdp2", weights, weights / 2), ("zero3", weights / 2, weights / 2)):
        for dtype, expected in (("float32", whole), ("bfloat16", half)):
            with_copy = total(launcher, gpus=2, dtype=dtype, lambda_kl=0.1) - total(launcher, gpus=2, dtype=dtype)
            assert with_copy == pytest.approx(expected)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu", "rtx-9999"], "`gpu='rtx-9999'` is neither a memory in GiB"),
        (["--gpus", "0"], "`gpus=0` is out of range"),
        (["--gradient_accumulation_steps", "0"], "`gradient_accumulation_steps=0` is out of range"),
        (["--optim", "sgd"], "`optim=sgd`"),
        (["--dtype", "int8"], "`dtype=int8`"),
        (["--method", "dora"], "dora"),
        (["--lambda_kl", "-1"], "`lambda_kl=-1.0` is out of range"),
        (["--max_length", "1"], "`max_length=1` is out of range"),
        (["--value_origin", "elsewhere"], "elsewhere"),
        (["--logit_buffer_mb", "0"], "`logit_buffer_mb=0` must be positive"),
        (["--lora_target_modules", "q_proj", "lm_head"], "the head can carry no adapter"),
        (["--config", "gsm8k/online_irl_lora"], "a recipe for `trl-irl online-irl`"),
        (["--config", "nowhere"], "is not there"),
        (["--method", "lora", "--lora_target_modules", "foo"], "`lora_target_modules: ['foo']`"),
    ],
)
def test_what_is_refused(words, said, model, capsys):
    with_model = [] if "--config" in words else ["--model_name_or_path", str(model)]
    try:
        status = run([*with_model, *words])
    except SystemExit as error:  # argparse's own
        status = error.code
    assert status == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("load_in_8bit: true", "sets load_in_8bit"),
        ("lora_modules_to_save: [embed_tokens]", "sets lora_modules_to_save"),
        ("attn_implementation: eager", "sets attn_implementation: eager"),
        ("max_length: null", "sets max_length: null"),
        ("load_in_4bit: true", "sets load_in_4bit without use_peft"),
        ("lambda_tdd: 3", "unknown key `lambda_tdd`; did you mean `lambda_td`"),
        ("per_device_train_batch_size: eight", "`per_device_train_batch_size: eight` is not a whole number"),
        ("bf16: often", "`bf16: often` is not true or false"),
    ],
)
def test_a_recipe_that_sets_what_is_not_known(line, said, tmp_path):
    (tmp_path / "irl.yaml").write_text(f"model_name_or_path: x\n{line}\n")
    with pytest.raises(ValueError, match=said):
        filled(PlanArguments(recipe=str(tmp_path / "irl.yaml")))


def test_words_for_true_and_false_and_a_buffer_by_word(tmp_path, model):
    (tmp_path / "irl.yaml").write_text("model_name_or_path: x\nbf16: 'no'\nlogit_buffer_mb: auto\n")
    assert filled(PlanArguments(recipe=str(tmp_path / "irl.yaml"))).bf16 is False
    assert run(["--model_name_or_path", str(model), "--logit_buffer_mb", "auto", "--method", "full"]) == 0


def test_no_model():
    assert run([]) == 2
    assert "--config" in make_parser().format_help()


def test_a_file_that_is_not_the_config_is_not_taken_for_it(model, capsys):
    other = model / "other.json"
    other.write_text((model / "config.json").read_text())
    assert run(["--model_name_or_path", str(other)]) == 2
    assert "a model's config is called config.json" in capsys.readouterr().err
    assert run(["--model_name_or_path", str(model / "config.json"), "--method", "full"]) == 0
