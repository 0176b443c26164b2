"""Q and V of encoder-decoder models against their own full logits, and several documents in one row."""

import pytest
import torch
from transformers import MBartForConditionalGeneration, PLBartForConditionalGeneration

from tests.encoder_decoders import BART, CONFIGS, MORE_CONFIGS, PACKABLE, make_encoder_decoder
from trl_irl.soft_q import attach_soft_q_head
from trl_irl.soft_q.packed import shifted


DOCUMENTS = [
    ([5, 6, 7, 8, 9, 1], [20, 21, 22, 1]),
    ([11, 12, 13, 1], [30, 31, 32, 33, 34, 1]),
    ([15, 16, 1], [40, 1]),
]


def padded(rows, filler):
    width = max(map(len, rows))
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])


def batch():
    prompts, completions = zip(*DOCUMENTS, strict=True)
    mask = padded([[1] * len(prompt) for prompt in prompts], 0)
    return {"input_ids": padded(prompts, 0), "attention_mask": mask, "labels": padded(completions, -100)}


@pytest.mark.parametrize("family", [*CONFIGS, *MORE_CONFIGS])
def test_values_and_gradients_are_those_of_the_models_logits(family):
    inputs, results = batch(), []
    for ours in (False, True):
        model = make_encoder_decoder(family, dtype=torch.float64).train()
        if ours:
            attach_soft_q_head(model)
            output = model(**inputs, soft_q="values")
            q, v, scored = output.q, output.v, output.labels != -100
            assert output.labels.equal(inputs["labels"])  # they are aligned with the decoder's states
        else:
            read = {"decoder_input_ids": shifted(model, inputs["labels"])} if family == "m2m100" else {}
            logits = model(**inputs, **read).logits
            scored = inputs["labels"] != -100
            v = logits.logsumexp(-1)
            q = logits.gather(-1, inputs["labels"].clamp(min=0)[..., None])[..., 0]
        q, v = q[scored], v[scored]
        (q * torch.arange(1.0, len(q) + 1, dtype=q.dtype) + v.square()).sum().backward()
        results.append((q, v, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (q, v, gradients), (our_q, our_v, ours) = results
    torch.testing.assert_close(our_q, q, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(our_v, v, rtol=1e-10, atol=1e-10)
    assert gradients.keys() == ours.keys()
    for name, expected in gradients.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", [MBartForConditionalGeneration, PLBartForConditionalGeneration])
@pytest.mark.parametrize("start, language_first", [(7, False), (1, True)], ids=["mbart-25", "mbart-50"])
def test_a_decoder_that_begins_with_the_last_label(start, language_first, kind):
    """
    Of a target that the tokenizer has ended, and no other: what was cut, what a policy said up to its EOS, and what is
    scored up to it begin as `generate` does. EOS is 1; languages are 7 and 8.
    """
    model = kind(
        kind.config_class(vocab_size=300, **BART | {"decoder_start_token_id": start, "scale_embedding": True})
    )
    model = model.double().eval()
    attach_soft_q_head(model)
    first, last = ([7], []) if language_first else ([], [7])
    cases = {
        "whole": ([*first, 20, 21, 1, *last], start),
        "cut": ([*first, 20, 21, 22], start),
        "said": ([*first, 20, 21, 22, 1], start),
        "short": ([*first, 1], start),
        "one token": ([20], start),
    }
    if not language_first:
        cases["another language"] = ([20, 21, 1, 8], 8)
    for name, (labels, begins) in cases.items():
        reads = [begins, *labels[:-1]]
        for pad in (0, 2):
            padded_labels = torch.tensor([labels + [-100] * pad])
            assert shifted(model, padded_labels)[0, : len(labels)].tolist() == reads, name
            output = model(input_ids=torch.tensor([[5, 6, 1]]), labels=padded_labels, soft_q="values")
            logits = model(input_ids=torch.tensor([[5, 6, 1]]), decoder_input_ids=torch.tensor([reads])).logits[0]
            torch.testing.assert_close(output.v[0, : len(labels)], logits.logsumexp(-1), msg=name)
    assert (shifted(model, torch.full((1, 3), -100)) != -100).all()
    # A model that was never told begins with BOS, as `generate` has it.
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    for labels in ([*first, 20, 21, 22], [-100] * 3):
        assert shifted(model, torch.tensor([labels]))[0, 0] == model.generation_config.bos_token_id == 2
    model.config.bos_token_id = model.generation_config.bos_token_id = None
    with pytest.raises(ValueError, match="decoder_start_token_id"):
        shifted(model, torch.tensor([[20, 21]]))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", PACKABLE)
def test_documents_of_one_row_do_not_see_each_other(family, attention):
    model = make_encoder_decoder(family, dtype=torch.float64).eval()
    if family != "t5gemma":  # which has no sdpa
        model.set_attn_implementation(attention)
    attach_soft_q_head(model)
    apart = model(**batch(), soft_q="values")
    labels = batch()["labels"]
    reads = shifted(model, labels)
    lengths = [len(completion) for _, completion in DOCUMENTS]
    packed = model(
        input_ids=torch.tensor([sum((prompt for prompt, _ in DOCUMENTS), [])]),
        labels=torch.tensor([sum((completion for _, completion in DOCUMENTS), [])]),
        decoder_input_ids=torch.cat([row[:n] for row, n in zip(reads, lengths, strict=True)])[None],
        encoder_documents=torch.tensor([[i for i, (prompt, _) in enumerate(DOCUMENTS) for _ in prompt]]),
        decoder_documents=torch.tensor([[i for i, (_, completion) in enumerate(DOCUMENTS) for _ in completion]]),
        soft_q="values",
    )
    for name in ("q", "v"):
        expected = torch.cat([row[:n] for row, n in zip(getattr(apart, name), lengths, strict=True)])
        rounding = 1e-6 if family == "t5gemma" else 1e-9  # its rotations are float32, by positions in the row
        torch.testing.assert_close(getattr(packed, name)[0], expected, rtol=rounding, atol=rounding)


def test_padding_of_packed_rows_changes_nothing():
    model = make_encoder_decoder(dtype=torch.float64).eval()
    attach_soft_q_head(model)
    prompts, labels = torch.tensor([[5, 6, 1, 8, 1]]), torch.tensor([[20, 1, 30, 1]])
    reads = torch.tensor([[0, 20, 0, 30]])
    documents = (torch.tensor([[0, 0, 0, 1, 1]]), torch.tensor([[0, 0, 1, 1]]))

    def values(pad):
        def wider(tensor, filler):
            return torch.nn.functional.pad(tensor, (0, pad), value=filler)

        asked = {"decoder_input_ids": wider(reads, 0), "labels": wider(labels, -100)}
        asked |= {"encoder_documents": wider(documents[0], -1), "decoder_documents": wider(documents[1], -1)}
        return model(input_ids=wider(prompts, 0), **asked, soft_q="values").v[0, :4]

    torch.testing.assert_close(values(3), values(0), rtol=1e-12, atol=1e-12)


def test_a_float32_mask_under_autocast():
    """Attention scores are then bfloat16, and a mask of another dtype is refused by some and rounds others up."""
    model = make_encoder_decoder().eval()
    attach_soft_q_head(model)
    with torch.autocast("cpu", torch.bfloat16):
        apart = model(**batch(), soft_q="values").v
        packed = model(
            input_ids=torch.tensor([sum((prompt for prompt, _ in DOCUMENTS[:2]), [])]),
            labels=torch.tensor([sum((completion for _, completion in DOCUMENTS[:2]), [])]),
            decoder_input_ids=torch.tensor([[0, 20, 21, 22, 0, 30, 31, 32, 33, 34]]),
            encoder_documents=torch.tensor([[0] * 6 + [1] * 4]),
            decoder_documents=torch.tensor([[0] * 4 + [1] * 6]),
            soft_q="values",
        ).v
    torch.testing.assert_close(packed[0, :4], apart[0, :4], rtol=0.02, atol=0.02)
    torch.testing.assert_close(packed[0, 4:], apart[1], rtol=0.02, atol=0.02)
