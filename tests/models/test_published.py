"""Checkpoints in the layout of published LLaVA-Med conversions: loaded as they are, repaired, or refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from bases import TASKS
from published import PATCH, SIZE, TOKENIZERS, edit, sentencepiece, write_published

from fairvlm_core.cohort.prompts import NO, YES, chat, questions
from fairvlm_core.errors import CheckpointError, CohortError
from fairvlm_core.losses.answers import instruction_loss
from fairvlm_core.models import checkpoint_config, pixels
from fairvlm_core.models.packing import pack
from fairvlm_core.models.published import chat_template, prepare_processor
from fairvlm_core.models.vlm import apply_adapter, load_base

TASK = TASKS["multilabel"]
IMAGES = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    return folder, write_published(folder)


@pytest.fixture
def folder(original, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(original[0], tmp_path / "llava")


def loaded(folder, size=SIZE, **options):
    return load_base(str(folder), TASK, size, **options)


def test_every_published_tensor_arrives(original):
    folder, model = original
    found = loaded(folder).llava.state_dict()
    assert len(list(folder.glob("*.safetensors"))) == 3
    assert found.keys() == model.state_dict().keys()
    assert all(value.equal(found[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("layer", "strategy", "tower"),
    [
        (-2, "default", "clip"),
        (-2, "full", "clip"),
        ([-2, -1], "default", "clip"),
        (1, "full", "clip"),
        (-2, "default", "dinov2"),
        (-1, "full", "siglip"),
        (-2, "default", "siglip"),
    ],
)
def test_features_are_those_of_transformers(tmp_path, layer, strategy, tower):
    model = write_published(tmp_path, layer=layer, strategy=strategy, tower=tower)
    vlm = loaded(tmp_path)
    vlm.llava.eval()
    with torch.no_grad():
        expected = torch.stack(model.get_image_features(pixels(IMAGES, vlm.mean, vlm.std)).pooler_output)
        found = vlm.project(vlm.features(IMAGES))
    torch.testing.assert_close(found, expected)
    assert found.shape[1] == vlm.image_tokens
    assert found.shape[1] == (SIZE // PATCH) ** 2 + (tower != "siglip") - (strategy == "default")


def masked_batch(vlm, turns):
    """The turns padded to one length, with labels that are -100 wherever nothing is learnt."""
    longest = max(len(turn.ids) for turn in turns)
    ids, mask = torch.zeros(2, len(turns), longest, dtype=torch.long)
    labels = torch.full((len(turns), longest), -100)
    for row, turn in enumerate(turns):
        ids[row, : len(turn.ids)] = torch.tensor(turn.ids)
        mask[row, : len(turn.ids)] = 1
        for place in turn.learnt:
            labels[row, place] = turn.ids[place]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_only_answers_are_in_the_loss(tmp_path, kind):
    """The packed loss equals transformers' own with labels of -100 on prompt, image and padding."""
    model = write_published(tmp_path, kind=kind)
    vlm = loaded(tmp_path)
    turns = [
        [vlm.sequence(chat(questions(TASK)[0]), YES), vlm.sequence(chat(questions(TASK)[1]), NO)],
        [vlm.conversation_turn([("What does the image show?", "It shows a melanoma."), ("Is the cup large?", "Yes")])],
        [vlm.sequence(chat("Does this image show edema?", "Patient: Female."), "The optic disc is pale.")],
    ]
    rows = [image for image, asked in enumerate(turns) for _ in asked]
    batch = masked_batch(vlm, [turn for asked in turns for turn in asked])
    # No token of an answer is an image token, a begin token or padding; each answer is there with its end.
    learnt = batch["labels"][batch["labels"] != -100].tolist()
    assert not {vlm.image_token, vlm.tokenizer.bos_token_id, 0} & set(learnt)
    said = vlm.tokenizer.decode(learnt).replace("</s>", "|").replace(" ", "")
    assert said == "Yes|No|Itshowsamelanoma.|Yes|Theopticdiscispale.|"
    vlm.llava.eval()
    with torch.no_grad():
        expected = model(pixel_values=pixels(IMAGES[rows], vlm.mean, vlm.std), **batch).loss
        packed = pack(turns)
        logits = vlm.answer_logits(vlm.project(vlm.features(IMAGES)), packed)
    torch.testing.assert_close(instruction_loss(logits, packed.target), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_scores_equal_transformers(tmp_path, kind):
    model = write_published(tmp_path, kind=kind)
    vlm = loaded(tmp_path)
    yes, no = vlm.yes_no
    assert [vlm.tokenizer.decode([token]).strip() for token in (yes, no)] == [YES, NO]
    expected = []
    for question in questions(TASK):
        turn = vlm.sequence(chat(question), YES)
        ids = torch.tensor([turn.ids[: turn.answer]] * len(IMAGES))
        with torch.no_grad():
            values = pixels(IMAGES, vlm.mean, vlm.std)
            logits = (
                model(input_ids=ids, pixel_values=values, attention_mask=torch.ones_like(ids)).logits[:, -1].double()
            )
        chance = logits.softmax(-1)
        expected.append(chance[:, yes] / (chance[:, yes] + chance[:, no]))
    found = vlm.score(IMAGES)
    np.testing.assert_allclose(found, torch.stack(expected, 1).numpy(), atol=1e-5)
    assert found.std() > 1e-3


def test_what_a_conversion_lacks_is_repaired_and_said(original, capsys):
    folder, _ = original
    loaded(folder)
    (line,) = capsys.readouterr().out.splitlines()
    for name in ("patch_size 14", "vision_feature_select_strategy default", "num_additional_image_tokens 1"):
        assert name in line
    assert "chat_template (missing)" in line
    processor, _ = prepare_processor(str(folder), checkpoint_config(str(folder), ("llava",)))
    made = processor(images=list(IMAGES), text=["<image>"] * len(IMAGES), return_tensors="pt")
    vlm = loaded(folder)
    assert (made["input_ids"] == vlm.image_token).sum(1).tolist() == [vlm.image_tokens] * len(IMAGES)
    torch.testing.assert_close(made["pixel_values"], pixels(IMAGES, vlm.mean, vlm.std), atol=1e-6, rtol=0)


def test_a_complete_checkpoint_needs_no_word(original, tmp_path, capsys):
    folder, _ = original
    complete = shutil.copytree(folder, tmp_path / "llava")
    processor, _ = prepare_processor(str(folder), checkpoint_config(str(folder), ("llava",)))
    processor.save_pretrained(complete)
    loaded(complete)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_template_writes_what_the_model_is_trained_on(tmp_path, kind):
    """Token for token, over several rounds, by transformers' own processor."""
    write_published(tmp_path, kind=kind)
    vlm = loaded(tmp_path)
    processor, _ = prepare_processor(str(tmp_path), checkpoint_config(str(tmp_path), ("llava",)))
    rounds = [("What does the image show?", "It shows a melanoma."), ("Is the cup large?", "Yes")]
    messages = []
    for number, (question, answer) in enumerate(rounds):
        image = [] if number else [{"type": "image", "image": IMAGES[0]}]
        messages.append({"role": "user", "content": [*image, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    made = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    assert made["input_ids"][0].tolist() == list(vlm.conversation_turn(rounds).ids)
    asked = processor.apply_chat_template(messages[:1], tokenize=True, return_dict=True, return_tensors="pt")
    turn = vlm.sequence(chat(rounds[0][0]), "x")
    told = asked["input_ids"][0].tolist()
    # A tokenizer may write a lone space before the answer, which we count to the prompt.
    assert told == list(turn.ids[: len(told)])
    assert not vlm.tokenizer.decode(turn.ids[len(told) : turn.answer]).strip()


def test_a_begin_token_that_is_missing_is_added_and_an_end_token_taken_away(tmp_path, capsys):
    write_published(tmp_path, kind="controls")
    loaded(tmp_path)
    assert "add_bos_token true" in capsys.readouterr().out
    tokenizer = sentencepiece("controls")
    tokenizer.add_bos_token = tokenizer.add_eos_token = True
    tokenizer.save_pretrained(tmp_path)
    loaded(tmp_path)
    said = capsys.readouterr().out
    assert "add_bos_token" not in said
    assert "add_eos_token false" in said
    processor, _ = prepare_processor(str(tmp_path), checkpoint_config(str(tmp_path), ("llava",)))
    assert processor.tokenizer("Yes")["input_ids"][0] == 1
    assert processor.tokenizer("Yes")["input_ids"][-1] != 2


def test_another_template_is_replaced_and_said(folder, capsys):
    edit(folder / "chat_template.json", chat_template="USER: <image>\n{{ messages[0]['content'] }} ASSISTANT:")
    loaded(folder)
    assert "chat_template (another form" in capsys.readouterr().out
    processor, _ = prepare_processor(str(folder), checkpoint_config(str(folder), ("llava",)))
    assert processor.chat_template == chat_template(processor.tokenizer)
    edit(folder / "chat_template.json", chat_template="{{ no end")
    assert prepare_processor(str(folder), checkpoint_config(str(folder), ("llava",)))[0].chat_template.startswith("{%")


@pytest.mark.parametrize(
    ("file", "changes", "what", "mend"),
    [
        ("processor_config.json", {"patch_size": 16}, "patch_size 16, the model 14", "one and the same"),
        ("processor_config.json", {"vision_feature_select_strategy": "full"}, "strategy full, the model d", "same"),
        ("processor_config.json", {"num_additional_image_tokens": 0}, "makes 15 image tokens .* model 16", "Write 1"),
        ("processor_config.json", {"image_token": "<img>"}, 'by "<img>"', "same"),
        ("preprocessor_config.json", {"crop_size": {"height": 28, "width": 28}}, "28 pixels, .* takes 56", "same"),
        ("preprocessor_config.json", {"crop_size": {"height": 56, "width": 28}}, "not square", "same"),
        ("preprocessor_config.json", {"image_mean": None}, "no image_mean", "published with"),
        ("preprocessor_config.json", {"do_normalize": False}, "does not normalise", "same"),
        ("config.json", {"image_token_index": 7}, 'the id 412, the model expects 7', "same"),
        ("config.json", {"model_type": "llava_mistral"}, "llava_mistral.*original", "llava-med-v1.5-mistral-7b-hf"),
        ("config.json", {"architectures": ["LlavaLlamaForCausalLM"]}, "original LLaVA", "transformers layout"),
        ("config.json", {"model_type": "mistral"}, 'model type "mistral"', "type llava"),
        ("config.json", {"model_type": "unheard_of"}, "cannot be read", "transformers layout"),
    ],
)  # fmt: skip
def test_what_contradicts_the_model_is_refused(folder, file, changes, what, mend):
    edit(folder / file, **changes)
    with pytest.raises(CheckpointError, match=f"(?s){what}") as caught:
        loaded(folder)
    assert any(word in caught.value.mend for word in mend.split("|"))
    assert str(folder) in caught.value.where


def test_a_tokenizer_without_the_image_is_refused(folder):
    tokenizer = sentencepiece()
    plain = type(tokenizer)(vocab=tokenizer.get_vocab(), merges=[])
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    edited = {piece: index for piece, index in plain.get_vocab().items() if piece != "<image>"}
    type(tokenizer)(vocab=edited, merges=[]).save_pretrained(folder)
    with pytest.raises(CheckpointError, match='no token "<image>"') as caught:
        loaded(folder)
    assert "412" in caught.value.mend


def test_the_image_must_have_a_row_in_the_language_model(folder):
    content = json.loads((folder / "config.json").read_text())
    content["text_config"]["vocab_size"] = 400
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="id 412, but the language model knows 400"):
        loaded(folder)


def test_images_of_another_size_are_refused(original):
    vlm = loaded(original[0])
    for images in (np.zeros((1, 84, 84, 3), dtype=np.uint8), torch.zeros(1, 3, 84, 84)):
        with pytest.raises(CohortError, match="Images of 84 pixels were given to a model for 56"):
            vlm.features(images)


def test_a_tower_of_another_type_is_refused(folder):
    content = json.loads((folder / "config.json").read_text())
    content["vision_config"] |= {"model_type": "vit"}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match='vision tower is of the type "vit"'):
        loaded(folder)


def test_images_must_be_cut_into_whole_patches(folder):
    with pytest.raises(CheckpointError, match=r"60 pixels .* patches of 14") as caught:
        loaded(folder, size=60)
    assert "such as 56" in caught.value.mend


def test_only_safetensors_are_read(folder, original):
    """The same weights as a pickle are not even opened."""
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    torch.save(original[1].state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no safetensors") as caught:
        loaded(folder)
    assert "save_pretrained" in caught.value.mend


def test_incomplete_weights_are_refused(folder):
    """transformers would draw what is missing at random and go on."""
    from safetensors.torch import load_file, save_file

    shard = folder / "model-00001-of-00003.safetensors"
    tensors = load_file(shard)
    gone = next(name for name in tensors if "layers" in name)
    save_file({name: value for name, value in tensors.items() if name != gone}, shard, metadata={"format": "pt"})
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    del index["weight_map"][gone]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="lacks 1 of the model's tensors"):
        loaded(folder)
    shard.unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        loaded(folder)
    shard.write_bytes(b"no safetensors")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        loaded(folder)


def adapter(folder, into, *, size=SIZE):
    vlm = loaded(folder, size)
    vlm.add_adapter(rank=2, alpha=4, tower=True)
    vlm.save(into)
    return vlm


def test_an_adapter_of_another_base_is_refused(original, folder, tmp_path):
    adapter(original[0], tmp_path / "adapter")
    apply_adapter(loaded(original[0]), tmp_path / "adapter")

    # Other weights of the same shape.
    from safetensors.torch import load_file, save_file

    shard = folder / "model-00002-of-00003.safetensors"
    other = {name: value * 1.01 for name, value in load_file(shard).items()}
    save_file(other, shard, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="trained on another base model"):
        apply_adapter(loaded(folder), tmp_path / "adapter")

    # Other shapes, whether or not a base is recorded.
    (tmp_path / "adapter" / "base.json").unlink()
    small = tmp_path / "small"
    write_published(small, layer=[-2, -1])
    with pytest.raises(CheckpointError, match=r"multi_modal_projector|\[48, 32\]") as caught:
        apply_adapter(loaded(small), tmp_path / "adapter")
    assert "the base takes [48, 64]" in caught.value.what
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"0")
    with pytest.raises(CheckpointError, match="cannot be read"):
        apply_adapter(loaded(small), tmp_path / "adapter")


def test_the_base_is_known_again_in_another_precision(original):
    folder, _ = original
    assert loaded(folder).base == loaded(folder, dtype=torch.bfloat16).base


def test_outputs_hold_what_was_trained_and_no_more(original, tmp_path):
    vlm = adapter(original[0], tmp_path / "adapter")
    trained = sum(p.numel() * 4 for p in vlm.llava.parameters() if p.requires_grad)
    written = sum(file.stat().st_size for file in (tmp_path / "adapter").iterdir())
    assert trained < written < trained + 32_000


def test_bfloat16_scores_as_float32_and_trains_in_float32(original):
    """What is trained is float32: a step of 2e-5 would be rounded away."""
    folder, _ = original
    exact, half = loaded(folder), loaded(folder, dtype=torch.bfloat16)
    assert half.llava.dtype == torch.bfloat16
    np.testing.assert_allclose(half.score(IMAGES), exact.score(IMAGES), atol=0.03)
    assert np.abs(exact.score(IMAGES) - 0.5).max() > 0.03
    half.add_adapter(rank=2, alpha=4, tower=True)
    assert {p.dtype for p in half.llava.parameters() if p.requires_grad} == {torch.float32}
    tokens = half.project(half.features(IMAGES))
    assert tokens.dtype == torch.float32
    packed = pack([half.turns()] * len(IMAGES))
    loss = instruction_loss(half.answer_logits(tokens, packed), packed.target)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in half.llava.parameters() if p.grad is not None)
    before = half.score(IMAGES)
    half.merge_adapter()
    assert {p.dtype for p in half.llava.parameters()} == {torch.bfloat16}
    np.testing.assert_allclose(half.score(IMAGES), before, atol=0.01)


def test_checkpointed_gradients_are_the_same(original):
    """Each layer runs once more in the backward pass, and nothing else changes."""
    gradients, runs = {}, {}
    for on in (False, True):
        vlm = loaded(original[0])
        torch.manual_seed(0)
        vlm.add_adapter(rank=2, alpha=4, tower=True)
        vlm.llava.train()
        if on:
            vlm.checkpoint_gradients()
        counted: list[int] = []
        for part in (vlm.parts.language_model.layers[0].mlp, vlm.parts.vision_tower.encoder.layers[0].mlp):
            part.register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
        packed = pack([vlm.turns()] * len(IMAGES))
        tokens = vlm.project(vlm.features(IMAGES))
        (instruction_loss(vlm.answer_logits(tokens, packed), packed.target) + tokens.square().mean()).backward()
        gradients[on] = {name: p.grad for name, p in vlm.llava.named_parameters() if p.requires_grad}
        runs[on] = len(counted)
    assert runs == {False: 2, True: 4}
    assert gradients[False].keys() == gradients[True].keys()
    for name, gradient in gradients[False].items():
        torch.testing.assert_close(gradients[True][name], gradient)
    assert sum(float(g.abs().sum()) for name, g in gradients[True].items() if "vision_tower" in name) > 0
