"""Rows with images: SFTTrainer's loss at weight 0, the objective in four families, and who reads text alone."""

import copy

import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from trl import SFTConfig, SFTTrainer

from tests.conftest import make_tokenizer
from tests.distributed.launchers import QUIET
from trl_irl import IRLConfig, IRLTrainer, SoftQReward, evaluate
from trl_irl.evaluation import EvaluationSettings


COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def rows():
    return [
        {
            "images": [Image.new("RGB", (28, 28), colour)],
            "prompt": [{"role": "user", "content": "Which colour?"}],
            "completion": [{"role": "assistant", "content": name}],
        }
        for name, colour in [*COLOURS.items(), ("red", COLOURS["red"])]
    ]


@pytest.fixture(scope="module")
def processor():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.eos_token = "<|im_end|>"  # noqa: S105
    images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    sizes = {"patch_size": 14, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
    tokenizer.chat_template = TEMPLATE
    return LlavaProcessor(image_processor=images, tokenizer=tokenizer, chat_template=TEMPLATE, **sizes)


@pytest.fixture(scope="module")
def model(processor):
    tokenizer = processor.tokenizer
    text = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=256, **SMALL)
    vision = CLIPVisionConfig(image_size=28, patch_size=14, projection_dim=16, **SMALL)
    token = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=token, image_seq_length=4)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model


def trained(trainer, config, model, processor, rows, folder, **keys):
    keys = {
        **QUIET,
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "max_length": None,
        **keys,
    }
    made = trainer(
        model=copy.deepcopy(model),
        args=config(str(folder), **keys),
        train_dataset=Dataset.from_list(rows),
        processing_class=copy.deepcopy(processor),
    )
    made.train()
    return made, [entry["loss"] for entry in made.state.log_history if "loss" in entry]


def test_weight_0_is_sft_with_images(model, processor, rows, tmp_path):
    _, expected = trained(SFTTrainer, SFTConfig, model, processor, rows, tmp_path / "sft")
    trainer, actual = trained(IRLTrainer, IRLConfig, model, processor, rows, tmp_path / "irl", lambda_td=0.0)
    assert actual == pytest.approx(expected, rel=1e-5)
    assert trainer.model.model.multi_modal_projector.linear_1.weight.grad is None  # zeroed after a step
    other = [{**row, "images": [Image.new("RGB", (28, 28), (9, 9, 9))]} for row in rows]
    _, blind = trained(IRLTrainer, IRLConfig, model, processor, other, tmp_path / "blind", lambda_td=0.0)
    assert blind[0] != pytest.approx(actual[0], rel=1e-4)  # what is in an image matters


def assert_equals_full_logits(trainer, batch, plain):
    """Loss and gradients of a batch, against a loop over the logits of a copy of the model in float64."""
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    plain, labels = plain.double(), batch["labels"]
    inputs = {key: x.double() if x.is_floating_point() else x for key, x in batch.items() if key != "labels"}
    logits = plain(**inputs).logits
    total, count = 0.0, 0
    for row in range(len(labels)):
        for t in range(labels.size(1) - 1):
            action = labels[row, t + 1].item()
            if action == -100:
                continue
            count += 1
            q, v = logits[row, t, action], logits[row, t].logsumexp(-1)
            total = total + v - q
            ends = action in trainer.stop_token_ids
            if ends or (t + 2 < labels.size(1) and labels[row, t + 2] != -100):
                next_v = 0.0 if ends else logits[row, t + 1].logsumexp(-1)
                total = total + 0.3 * (q - next_v) ** 2
    expected = total / count
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    own = dict(trainer.model.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(own[name].grad, parameter.grad.float(), rtol=1e-3, atol=1e-5)


def settings(folder, **keys) -> IRLConfig:
    keys = {**QUIET, "lambda_td": 0.3, "td_scale": 1.0, "terminal_value": "zero", **keys}
    return IRLConfig(str(folder), max_length=None, **keys)


def test_objective_and_gradients_against_full_logits(model, processor, rows, tmp_path):
    trainer = IRLTrainer(
        model=copy.deepcopy(model),
        args=settings(tmp_path, per_device_train_batch_size=4),
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
    )
    assert_equals_full_logits(trainer, next(iter(trainer.get_train_dataloader())), copy.deepcopy(model))
    assert trainer.model.model.multi_modal_projector.linear_1.weight.grad.abs().max() > 0


IMAGE = 290  # the token in whose place a patch of an image stands


def qwen2_5_vl():
    """Patches in a row, and positions in three dimensions, which its forward counts from the sizes of images."""
    text = {"num_key_value_heads": 2, "max_position_embeddings": 256, "vocab_size": 300, **SMALL}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    vision = {"hidden_size": 16, "intermediate_size": 32, "depth": 2, "num_heads": 2, "out_hidden_size": 16}
    vision |= {"patch_size": 4, "temporal_patch_size": 1, "window_size": 16, "fullatt_block_indexes": [1]}
    tokens = {"video_token_id": 291, "vision_start_token_id": 292, "vision_end_token_id": 293}
    config = Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": rope}, vision_config=vision, image_token_id=IMAGE, **tokens
    )
    of_images = {"pixel_values": torch.randn(32, 3 * 16), "image_grid_thw": torch.tensor([[1, 4, 4]] * 2)}
    return Qwen2_5_VLForConditionalGeneration(config), of_images, "mm_token_type_ids"


def smolvlm():
    text = {"num_key_value_heads": 2, "max_position_embeddings": 256, "vocab_size": 300, "pad_token_id": 0, **SMALL}
    config = SmolVLMConfig(
        text_config={"model_type": "llama", **text},
        vision_config={"image_size": 16, "patch_size": 4, **SMALL},
        scale_factor=2,
        image_token_id=IMAGE,
    )
    return SmolVLMForConditionalGeneration(config), {"pixel_values": torch.randn(2, 1, 3, 16, 16)}, None


def gemma3():
    """Image tokens see each other in both directions, and it says so with token types."""
    text = {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 8, "max_position_embeddings": 256}
    config = Gemma3Config(
        text_config={**text, "vocab_size": 300, **SMALL},
        vision_config={"image_size": 16, "patch_size": 4, **SMALL},
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
    )
    return Gemma3ForConditionalGeneration(config), {"pixel_values": torch.randn(2, 3, 16, 16)}, "token_type_ids"


@pytest.mark.parametrize("family", [qwen2_5_vl, smolvlm, gemma3])
def test_families_with_images_against_full_logits(family, tokenizer, tmp_path):
    """Batches as their processors make them, two rows of other lengths; the processors want torchvision."""
    torch.manual_seed(0)
    model, of_images, types = family()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    ids = torch.randint(10, 280, (2, 14))
    ids[:, 2:6] = IMAGE
    mask = torch.ones_like(ids)
    mask[1, 11:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :8] = -100
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, **of_images}
    if types:
        batch[types] = (ids == IMAGE).long()
    text = Dataset.from_list([{"prompt": "One", "completion": " two"}] * 2)
    trainer = IRLTrainer(
        model=copy.deepcopy(model), args=settings(tmp_path), train_dataset=text, processing_class=tokenizer
    )
    model.train()
    assert_equals_full_logits(trainer, batch, model)
    first = next(p for name, p in trainer.model.named_parameters() if "patch_emb" in name)
    assert first.grad.abs().max() > 0


def test_rows_that_are_cut_within_an_image(model, processor, rows, tmp_path):
    with pytest.raises(ValueError, match="`max_length=6` cuts off tokens that stand for an image"):
        trained(IRLTrainer, IRLConfig, model, processor, rows, tmp_path, max_length=6)


def test_what_reads_text_alone_says_so(model_folder, rows):
    plan = EvaluationSettings(metrics=["rouge"], max_new_tokens=2, num_samples=1, samplers=["t=0"])
    with pytest.raises(ValueError, match="Row 0 of `test` has images in the column `images`"):
        evaluate([str(model_folder)], rows, plan)
    reward = SoftQReward(str(model_folder))
    images = [row["images"] for row in rows[:1]]
    with pytest.raises(ValueError, match="The rows have images in the column `images`"):
        reward(["One"], [" two"], images=images)
    assert len(reward(["One"], [" two"], images=[None])) == 1
